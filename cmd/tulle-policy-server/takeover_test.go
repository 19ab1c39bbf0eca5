package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tulle/policy/store/pgtest"
)

// cfSchema is that of a Cloud Foundry policy server and silk-controller on
// PostgreSQL, with something in it (reference: policy-api, 7; silk-controller, 1.6).
const cfSchema = `
CREATE TABLE groups (id serial PRIMARY KEY, guid varchar(255) UNIQUE, type varchar(255) DEFAULT 'app');
CREATE TABLE destinations (id serial PRIMARY KEY, group_id int REFERENCES groups (id), port int, protocol varchar(255),
	start_port int DEFAULT 0, end_port int DEFAULT 0, UNIQUE (group_id, start_port, end_port, protocol));
CREATE TABLE policies (id serial PRIMARY KEY, group_id int REFERENCES groups (id), destination_id int REFERENCES destinations (id), UNIQUE (group_id, destination_id));
CREATE TABLE policies_info (id serial PRIMARY KEY, last_updated timestamp);
CREATE TABLE security_groups (id bigserial PRIMARY KEY, guid varchar(36) UNIQUE, name varchar(255), rules text,
	staging_default boolean, running_default boolean, staging_spaces jsonb, running_spaces jsonb);
CREATE TABLE subnets (id serial PRIMARY KEY, underlay_ip varchar(15) UNIQUE, overlay_subnet varchar(18) UNIQUE, overlay_hwaddr varchar(17) UNIQUE, last_renewed_at bigint);
INSERT INTO groups (guid) SELECT NULL FROM generate_series(1, 300);
UPDATE groups SET guid = 'web' WHERE id = 17; UPDATE groups SET guid = 'db' WHERE id = 3; UPDATE groups SET guid = 'INGRESS_ROUTER', type = 'router' WHERE id = 255;
INSERT INTO destinations (group_id, port, protocol, start_port, end_port) VALUES (3, 0, 'tcp', 7000, 7010), (17, 53, 'udp', 53, 53);
INSERT INTO policies (group_id, destination_id) VALUES (17, 1), (3, 2);
INSERT INTO policies_info (last_updated) VALUES (now());
INSERT INTO security_groups (guid, name, rules, staging_default, running_default, staging_spaces, running_spaces) VALUES
	('asg-1', E'with a \t tab, a \\ and a ''quote''; and more', '[{"protocol":"tcp","destination":"10.20.0.0/24","ports":"5432","type":0,"code":0,"description":"a \"b\"","log":false}]', false, true, '[]', '["s1"]');
INSERT INTO subnets (underlay_ip, overlay_subnet, overlay_hwaddr, last_renewed_at) VALUES
	('192.0.2.11', '10.255.77.0/24', 'ee:ee:0a:ff:4d:00', extract(epoch FROM now())),
	('192.0.2.12', '10.255.0.9/32', 'ee:ee:0a:ff:00:09', extract(epoch FROM now()) - 3600),
	('192.0.2.13', '10.255.78.0/24', 'ee:ee:0a:ff:4e:00', extract(epoch FROM now()) - 7 * 24 * 3600 - 1);
CREATE FUNCTION noise() RETURNS text LANGUAGE plpgsql AS $body$ BEGIN RETURN 'INSERT INTO groups VALUES (;'; END $body$;`

// TestTakeOverADump dumps the database of a Cloud Foundry with pg_dump, in each of
// its ways, and takes it over: policies, tags, security groups and leases are what
// they were.
func TestTakeOverADump(t *testing.T) {
	cluster := pgtest.Start(t)
	database := cluster.Database()
	cluster.Exec(database, cfSchema)
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/pg_dump")
	if err != nil || len(found) == 0 {
		t.Fatalf("pg_dump is not where the server is: %v, %v", found, err)
	}
	dump := func(args ...string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "dump.sql")
		out, err := exec.CommandContext(t.Context(), found[len(found)-1], append(args, "--dbname", database, "--file", path)...).CombinedOutput()
		if err != nil {
			t.Fatalf("pg_dump: %v\n%s", err, out)
		}
		return path
	}
	for name, files := range map[string][]string{
		"whole":                  {dump()},
		"inserts":                {dump("--inserts")},
		"inserts with columns":   {dump("--column-inserts", "--quote-all-identifiers")},
		"two databases":          {dump("--table", "groups", "--table", "destinations", "--table", "policies", "--table", "security_groups"), dump("--table", "subnets")},
		"without owners, inward": {dump("--no-owner", "--no-privileges", "--rows-per-insert=2")},
	} {
		dir := initialised(t)
		args := []string{"import", "--dir", dir}
		for _, f := range files {
			args = append(args, "--dump", f)
		}
		if got := must(t, args...); got != "2 policies, 2 cells and peers\n" {
			t.Errorf("%s: import said %q", name, got)
		}
		s := serving(t, "--dir", dir)
		token := strings.TrimSpace(read(t, filepath.Join(dir, adminToken)))
		for path, want := range map[string][]string{
			"/networking/v1/external/tags":     {`{"tags":[{"id":"db","tag":"0003","type":"app"},{"id":"web","tag":"0011","type":"app"},{"id":"INGRESS_ROUTER","tag":"00FF","type":"router"}]}`},
			"/networking/v1/external/policies": {`"total_policies":2`, `{"source":{"id":"web"},"destination":{"id":"db","protocol":"tcp","ports":{"start":7000,"end":7010}}}`, `"protocol":"udp","ports":{"start":53,"end":53}`},
			"/v1/security-groups":              {`"guid":"asg-1","name":"with a \t tab, a \\ and a 'quote'; and more"`, `"ports":"5432"`, `"running_default":true`, `"running_space_guids":["s1"]`},
			"/v1/cells":                        {`"name":"silk:192.0.2.11"`, `"subnet":"10.255.77.0/24"`, `"name":"silk:192.0.2.12"`, `"subnet":"10.255.0.9/32"`},
		} {
			got := s.get(t, path, token)
			for _, w := range want {
				if !strings.Contains(got, w) {
					t.Errorf("%s, %s: %s\nhas not %s", name, path, got, w)
				}
			}
		}
		s.stop()
	}
	text := read(t, dump("--table", "policies"))
	alone := write(t, filepath.Join(t.TempDir(), "alone.sql"), text)
	if status, _, stderr := call(t, "import", "--dir", initialised(t), "--dump", alone); status != 1 || !strings.Contains(stderr, alone+": table policies: group ") {
		t.Errorf("a dump of half of it: %d %s", status, stderr)
	}
}

// TestTakeOverLeases takes the leases of a silk-controller's own answer.
func TestTakeOverLeases(t *testing.T) {
	files := t.TempDir()
	file := func(name, text string) string { return write(t, filepath.Join(files, name), text) }
	policies, tags := file("policies.json", `{"total_policies":0,"policies":[]}`), file("tags.json", `{"tags":[]}`)
	leases := file("leases.json", `{"leases":[{"underlay_ip":"192.0.2.11","overlay_subnet":"10.255.77.0/24","overlay_hardware_addr":"ee:ee:0a:ff:4d:00"}]}`)
	dir := initialised(t)
	if got := must(t, "import", "--dir", dir, "--policies", policies, "--tags", tags, "--leases", leases); got != "0 policies, 1 cells and peers\n" {
		t.Errorf("import said %q", got)
	}
	s := serving(t, "--dir", dir)
	got := s.get(t, "/v1/cells", strings.TrimSpace(read(t, filepath.Join(dir, adminToken))))
	for _, want := range []string{`"name":"silk:192.0.2.11","kind":"silk","mode":"vxlan","underlay":"192.0.2.11","port":4789,"subnet":"10.255.77.0/24"`, `"expires":`} {
		if !strings.Contains(got, want) {
			t.Errorf("cells: %s\nhas not %s", got, want)
		}
	}
	for text, want := range map[string]string{
		`{"leases":[{"underlay_ip":"x","overlay_subnet":"10.255.77.0/24"}]}`:          `lease of "x"`,
		`{"leases":[{"underlay_ip":"192.0.2.1","overlay_subnet":"x"}]}`:               "lease of 192.0.2.1",
		`{"leases":[{"underlay_ip":"192.0.2.1","overlay_subnet":"10.255.77.1/24"}]}`:  "is not one of a silk cell",
		`{"leases":[{"underlay_ip":"192.0.2.1","overlay_subnet":"192.168.77.0/24"}]}`: "is not a part of the overlay network",
	} {
		bad := file("bad.json", text)
		status, _, stderr := call(t, "import", "--dir", initialised(t), "--policies", policies, "--tags", tags, "--leases", bad)
		if status != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d %s; want %q", text, status, stderr, want)
		}
	}
	if left, err := os.ReadDir(files); err != nil || !slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() == "leases.json" }) {
		t.Errorf("the files: %v, %v", left, err)
	}
}
