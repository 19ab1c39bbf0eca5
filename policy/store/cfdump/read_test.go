package cfdump

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"tulle/policy"
	"tulle/policy/api"
	"tulle/policy/store"
)

// want is what both fixtures hold.
var want = store.Foundation{
	Policies: api.Policies{Total: 3, Policies: []api.Policy{
		{Source: api.Source{ID: "web"}, Destination: api.Destination{ID: "db", Protocol: "tcp", Ports: api.Ports{Start: 7000, End: 7010}}},
		{Source: api.Source{ID: "db"}, Destination: api.Destination{ID: "web", Protocol: "udp", Ports: api.Ports{Start: 53, End: 53}}},
		{Source: api.Source{ID: "web"}, Destination: api.Destination{ID: "db", Protocol: "tcp", Ports: api.Ports{Start: 9000, End: 9000}}},
	}},
	Tags: api.Tags{Tags: []api.Tag{{ID: "web", Tag: "0001", Type: "app"}, {ID: "db", Tag: "0003", Type: "app"}, {ID: "INGRESS_ROUTER", Tag: "0007", Type: "router"}}},
	SecurityGroups: []api.SecurityGroup{{GUID: "asg-1", Name: "it's; a \"name\"\twith -- everything \\", RunningDefault: true, RunningSpaces: []string{"s1", "s2"},
		Rules: []policy.SecurityRule{{Protocol: "tcp", Destination: "10.20.0.0/24", Ports: "5432", Description: "a 'quoted' (thing), \"so\"\nto say"}}}},
	Leases: []store.FoundationLease{
		{SilkLease: store.SilkLease{Underlay: netip.MustParseAddr("192.0.2.11"), Subnet: netip.MustParsePrefix("10.255.77.0/24")}, Renewed: time.Unix(1_800_000_000, 0)},
		{SilkLease: store.SilkLease{Underlay: netip.MustParseAddr("192.0.2.12"), Subnet: netip.MustParsePrefix("10.255.0.9/32")}, Renewed: time.Unix(1_799_000_000, 0)},
	},
}

func same(t *testing.T, what string, want, got store.Foundation) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// TestMySQLDump reads dumps as mysqldump writes them: with and without its
// extended inserts and column lists.
func TestMySQLDump(t *testing.T) {
	for _, name := range []string{"mysql.sql", "mysql-complete.sql"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Read(string(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		same(t, name, want, got)
		crlf, err := Read(strings.ReplaceAll(string(text), "\n", "\r\n"))
		if err != nil {
			t.Fatalf("%s, with CR LF: %v", name, err)
		}
		same(t, name+", with CR LF", want, crlf)
	}
}

// TestDumpsThatAreNone names what is wrong and where.
func TestDumpsThatAreNone(t *testing.T) {
	const head = "-- MySQL dump 10.13\n"
	const groups = "CREATE TABLE `groups` (`id` int, `guid` varchar(36), `type` varchar(36), PRIMARY KEY (`id`));\n"
	const policies = "CREATE TABLE policies (id int, group_id int, destination_id int);\n"
	for text, want := range map[string]string{
		"":                        ErrNoDump.Error(),
		"PGDMP\x01\x0e":           ErrNoDump.Error(),
		head:                      "neither the table policies",
		head + "CREATE TABLE x (": "neither the table policies",
		head + "INSERT INTO `groups` VALUES (1,'a','app');\n":                                       "line 2: table groups: the order of its columns is not known",
		head + groups + "INSERT INTO `groups` VALUES (1,'a');\n":                                    "line 3: table groups: a row has not its 3 columns",
		head + groups + "INSERT INTO `groups` VALUES (1,'a','app',2);\n":                            "more than its 3 columns",
		head + groups + "INSERT INTO `groups` VALUES (1,'a','app'),;\n":                             "a row is missing",
		head + groups + "INSERT INTO `groups` VALUES (1,'a":                                         "a quoted text does not end",
		head + groups + "INSERT INTO `groups` SELECT 1":                                             "INSERT without VALUES",
		head + groups + policies + "INSERT INTO `groups` VALUES (70000,'a','app');\n":               "a has the tag 70000, which does not exist",
		head + groups + policies + "INSERT INTO policies VALUES (1,1,1);\n":                         "group 1 or destination 1 of a policy is not in the dump",
		head + groups + policies + "INSERT INTO policies VALUES (1,NULL,1);\n":                      "column group_id is missing",
		head + "CREATE TABLE subnets (underlay_ip text);\nINSERT INTO subnets VALUES ('banana');\n": "table subnets",
		"-- PostgreSQL database dump\nCOPY public.groups (id, guid, type) FROM stdin;\n1\ta\tapp\n": "its rows do not end",
		"-- PostgreSQL database dump\nCOPY public.groups (id, guid, type) FROM stdin;\n1\ta\n\\.\n": "a row has 2 columns, not 3",
		"-- PostgreSQL database dump\nCREATE TABLE \"groups":                                        "a quoted text does not end",
	} {
		if _, err := Read(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := Read("<html>"); !errors.Is(err, ErrNoDump) {
		t.Errorf("a page: %v", err)
	}
}

// FuzzRead: a file that an operator names, from a database that others could write
// to. It never panics, and what it takes has no policy without its ends.
func FuzzRead(f *testing.F) {
	for _, name := range []string{"mysql.sql", "mysql-complete.sql"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Add("-- PostgreSQL database dump\nCREATE TABLE public.policies (id integer);\nCOPY public.groups (id, guid, type) FROM stdin;\n1\ta\\tb\tapp\n2\t\\N\t\\N\n\\.\n")
	f.Add("-- PostgreSQL database dump\nCREATE FUNCTION f() AS $a$ ; ' $a$;\nINSERT INTO subnets (underlay_ip) VALUES (E'\\'');")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Read(text)
		if err != nil {
			return
		}
		for _, p := range got.Policies.Policies {
			if p.Source.ID == "" || p.Destination.ID == "" {
				t.Errorf("a policy without its ends: %+v", p)
			}
		}
	})
}
