-- MySQL dump 10.13  Distrib 8.0.36, for Linux (x86_64)
--
-- Host: localhost    Database: network_policy
-- ------------------------------------------------------
-- Server version	8.0.36

/*!40101 SET @OLD_CHARACTER_SET_CLIENT=@@CHARACTER_SET_CLIENT */;
/*!50503 SET NAMES utf8mb4 */;
/*!40014 SET @OLD_FOREIGN_KEY_CHECKS=@@FOREIGN_KEY_CHECKS, FOREIGN_KEY_CHECKS=0 */;

--
-- Table structure for table `destinations`
--

DROP TABLE IF EXISTS `destinations`;
/*!40101 SET @saved_cs_client     = @@character_set_client */;
CREATE TABLE `destinations` (
  `id` int NOT NULL AUTO_INCREMENT,
  `group_id` int DEFAULT NULL,
  `port` int DEFAULT NULL,
  `protocol` varchar(255) DEFAULT NULL COMMENT 'tcp, udp; nothing (else)',
  `start_port` int DEFAULT '0',
  `end_port` int DEFAULT '0',
  PRIMARY KEY (`id`),
  UNIQUE KEY `unique_destination` (`group_id`,`start_port`,`end_port`,`protocol`),
  CONSTRAINT `destinations_ibfk_1` FOREIGN KEY (`group_id`) REFERENCES `groups` (`id`)
) ENGINE=InnoDB AUTO_INCREMENT=4 DEFAULT CHARSET=utf8mb3;
/*!40101 SET character_set_client = @saved_cs_client */;

LOCK TABLES `destinations` WRITE;
/*!40000 ALTER TABLE `destinations` DISABLE KEYS */;
INSERT INTO `destinations` VALUES (1,3,0,'tcp',7000,7010),(2,1,53,'udp',53,53),(3,3,9000,'tcp',0,0);
/*!40000 ALTER TABLE `destinations` ENABLE KEYS */;
UNLOCK TABLES;

CREATE TABLE `gorp_migrations` (
  `id` varchar(255) NOT NULL,
  `applied_at` datetime DEFAULT NULL,
  PRIMARY KEY (`id`)
);
INSERT INTO `gorp_migrations` VALUES ('1','2016-12-01 10:00:00'),('a; b','2016-12-01 10:00:00');

CREATE TABLE `groups` (
  `id` int NOT NULL AUTO_INCREMENT,
  `guid` varchar(255) DEFAULT NULL,
  `type` varchar(255) DEFAULT 'app',
  PRIMARY KEY (`id`),
  UNIQUE KEY `guid` (`guid`)
) ENGINE=InnoDB AUTO_INCREMENT=65536 DEFAULT CHARSET=utf8mb3;
INSERT INTO `groups` VALUES (1,'web','app'),(2,NULL,NULL),(3,'db','app'),(4,NULL,'app');
INSERT INTO `groups` VALUES (7,'INGRESS_ROUTER','router');

CREATE TABLE `policies` (
  `id` int NOT NULL AUTO_INCREMENT,
  `group_id` int DEFAULT NULL,
  `destination_id` int DEFAULT NULL,
  PRIMARY KEY (`id`)
);
INSERT INTO `policies` VALUES (1,1,1),(2,3,2),(5,1,3);

CREATE TABLE `security_groups` (
  `id` bigint NOT NULL AUTO_INCREMENT,
  `guid` varchar(36) NOT NULL,
  `name` varchar(255) NOT NULL,
  `rules` mediumtext,
  `staging_default` tinyint(1) DEFAULT '0',
  `running_default` tinyint(1) DEFAULT '0',
  `staging_spaces` json DEFAULT NULL,
  `running_spaces` json DEFAULT NULL,
  `hash` varchar(255) DEFAULT NULL,
  PRIMARY KEY (`id`)
);
INSERT INTO `security_groups` VALUES (1,'asg-1','it\'s; a \"name\"\twith -- everything \\','[{\"protocol\":\"tcp\",\"destination\":\"10.20.0.0/24\",\"ports\":\"5432\",\"type\":0,\"code\":0,\"description\":\"a ''quoted'' (thing), \\\"so\\\"\\nto say\",\"log\":false}]',0,1,'[]','[\"s1\", \"s2\"]','x');

CREATE TABLE `subnets` (
  `id` int NOT NULL AUTO_INCREMENT,
  `underlay_ip` varchar(15) NOT NULL,
  `overlay_subnet` varchar(18) NOT NULL,
  `overlay_hwaddr` varchar(17) NOT NULL,
  `last_renewed_at` bigint NOT NULL,
  PRIMARY KEY (`id`)
);
INSERT INTO `subnets` VALUES (1,'192.0.2.11','10.255.77.0/24','ee:ee:0a:ff:4d:00',1800000000),(2,'192.0.2.12','10.255.0.9/32','ee:ee:0a:ff:00:09',1799000000);

/*!40101 SET CHARACTER_SET_CLIENT=@OLD_CHARACTER_SET_CLIENT */;
-- Dump completed on 2026-11-20 10:00:00
