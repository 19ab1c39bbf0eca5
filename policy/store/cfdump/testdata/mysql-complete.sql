-- MariaDB dump 10.19  Distrib 10.11.6-MariaDB, for debian-linux-gnu (x86_64)
-- as of --complete-insert --skip-extended-insert --compatible=ansi
CREATE TABLE "policies" ("id" int(11) NOT NULL, "group_id" int(11), "destination_id" int(11), PRIMARY KEY ("id"));
INSERT INTO "policies" ("destination_id", "id", "group_id") VALUES (1,1,1);
INSERT INTO "policies" ("destination_id", "id", "group_id") VALUES (2,2,3);
INSERT INTO "policies" ("destination_id", "id", "group_id") VALUES (3,5,1);
INSERT INTO "destinations" ("id","group_id","port","start_port","end_port","protocol") VALUES (1,3,0,7000,7010,'tcp');
INSERT INTO "destinations" ("id","group_id","port","start_port","end_port","protocol") VALUES (2,1,53,53,53,'udp');
INSERT INTO "destinations" ("id","group_id","port","start_port","end_port","protocol") VALUES (3,3,9000,9000,9000,'tcp');
INSERT INTO `network_policy`.`groups` (`id`,`guid`,`type`) VALUES (1,'web','app');
INSERT INTO `network_policy`.`groups` (`id`,`guid`,`type`) VALUES (2,NULL,NULL);
INSERT INTO `network_policy`.`groups` (`id`,`guid`,`type`) VALUES (3,'db','app');
INSERT INTO `network_policy`.`groups` (`id`,`guid`,`type`) VALUES (7,'INGRESS_ROUTER','router');
INSERT INTO security_groups (id,guid,name,rules,staging_default,running_default,running_spaces) VALUES (9,'asg-1',_utf8mb4 'it''s; a "name"\twith -- everything \\',_binary '[{"protocol":"tcp","destination":"10.20.0.0/24","ports":"5432","type":0,"code":0,"description":"a ''quoted'' (thing), \\"so\\"\\nto say","log":false}]',b'0',1,'["s1","s2"]');
INSERT INTO subnets (underlay_ip, overlay_subnet, overlay_hwaddr, last_renewed_at) VALUES ('192.0.2.11','10.255.77.0/24','ee:ee:0a:ff:4d:00',1800000000);
INSERT INTO subnets (underlay_ip, overlay_subnet, overlay_hwaddr, last_renewed_at) VALUES ('192.0.2.12','10.255.0.9/32','ee:ee:0a:ff:00:09',1799000000);
