package netconf_test

import (
	"fmt"
	"strings"
	"testing"

	"tulle/cni/netconf"
)

const guid = "3b7c1e0a-6f0d-4d3a-9a51-0d2f6f1b2c3d"

func TestIdentify(t *testing.T) {
	for _, c := range []struct{ name, conf, args, env, want string }{
		{"args by name", `"app":{"name":"other"}`, "IgnoreUnknown=1;K8S_POD_NAME=p;TULLE_APP=web;TULLE_SPACE=dev;TULLE_ORG=acme;TULLE_INSTANCE=2", "", "{ web dev acme} 2"},
		{"args by guid", ``, "TULLE_APP=" + guid, "", "{" + guid + "   } "},
		{"no space is the default one", ``, "TULLE_APP=web", "", "{ web default default} "},
		{"args before environment", ``, "TULLE_APP=web", "TULLE_APP=env", "{ web default default} "},
		{"args before metadata", `"metadata":{"app_id":"m"}`, "TULLE_APP=web", "", "{ web default default} "},
		{"metadata before the runtime's capability", `"metadata":{"app_id":"m"},"runtimeConfig":{"app":{"name":"cap"}}`, "", "", "{m   } "},
		{"capability before environment", `"runtimeConfig":{"app":{"name":"cap","space":"s","instance":"3"}}`, "", "TULLE_APP=env", "{ cap s default} 3"},
		{"capability by guid", `"runtimeConfig":{"app":{"guid":"g","name":"cap"}}`, "", "", "{g   } "},
		{"environment before the name", `"name_pattern":"(?P<app>.+)"`, "K8S_POD_NAME=web", "TULLE_APP=env", "{ env default default} "},
		{"name before the network's app", `"name_pattern":"(?P<org>[a-z]+)_(?P<space>[a-z]+)_(?P<app>[a-z]+)-(?P<instance>[0-9]+)","app":{"name":"n"}`, "K8S_POD_NAME=acme_dev_web-2", "", "{ web dev acme} 2"},
		{"the id, where there is no name", `"name_pattern":"default-(?P<app>[a-z]+)"`, "", "", "{ id default default} "},
		{"a name that does not fit", `"name_pattern":"[a-z]+-(?P<app>[a-z]+)","app":{"name":"n"}`, "K8S_POD_NAME=x-web-1", "", "{ n default default} "},
		{"a name that does not fit, and nobody else", `"name_pattern":"(?P<app>[a-z]+)"`, "K8S_POD_NAME=web-1", "", "error: network net: nobody says which app container web-1 is"},
		{"a pattern without an app", `"name_pattern":"(?P<space>.+)"`, "K8S_POD_NAME=web", "", "error: name_pattern \"(?P<space>.+)\" has no group (?P<app>"},
		{"a pattern with another group", `"name_pattern":"(?P<app>.+)(?P<pod>.+)"`, "K8S_POD_NAME=web", "", "error: name_pattern \"(?P<app>.+)(?P<pod>.+)\": group \"pod\" is none of"},
		{"no pattern at all", `"name_pattern":"("`, "K8S_POD_NAME=web", "", "error: name_pattern: error parsing regexp"},
		{"policy group before app id", `"metadata":{"app_id":"m","policy_group_id":"p"},"app":{"name":"n"}`, "", "", "{p   } "},
		{"Garden's space and org", `"metadata":{"policy_group_id":"p","space_id":"s","org_id":"o"}`, "", "", "{p  s o} "},
		{"app id", `"metadata":{"app_id":"m"},"app":{"name":"n"}`, "TULLE_INSTANCE=1", "", "{m   } 1"},
		{"the network's guid", `"app":{"guid":"g","name":"n"}`, "", "", "{g   } "},
		{"the network's name", `"app":{"name":"n","space":"s","org":"o"}`, "", "", "{ n s o} "},
		{"nobody", ``, "", "", `error: network net: nobody says which app`},
		{"bad args", ``, "TULLE_APP", "", `error: CNI_ARGS: "TULLE_APP" is not KEY=VALUE`},
	} {
		t.Run(c.name, func(t *testing.T) {
			body := `{"cniVersion":"1.0.0","name":"net"`
			if c.conf != "" {
				body += "," + c.conf
			}
			conf, err := netconf.Parse([]byte(body + "}"))
			if err != nil {
				t.Fatal(err)
			}
			ref, instance, err := conf.Identify(c.args, "default-id", func(k string) string {
				v, _ := strings.CutPrefix(c.env, k+"=")
				if v == c.env {
					return ""
				}
				return v
			})
			got := fmt.Sprintf("%v %s", ref, instance)
			if err != nil {
				got = "error: " + err.Error()
			}
			if !strings.HasPrefix(got, c.want) || err == nil && got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// FuzzParse: a runtime's input either decodes or is an error, never both and
// never a crash; what decodes can be identified or says why not.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","app":{"name":"web"}}`), "TULLE_APP=web")
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"n","prevResult":{"ips":[{"version":"4","address":"10.0.0.1/32"}]}}`), "")
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","name_pattern":"(?P<app>.*)","runtimeConfig":{"ips":["10.0.0.1/8"],"mac":"02:00:00:00:00:01"}}`), "K8S_POD_NAME=w;IP=10.0.0.1")
	f.Add([]byte(`{"cniVersion":"1.1.0","prevResult":{"interfaces":[{"name":"a"}]},"metadata":{"app_id":"x"}}`), "A=B;;C=")
	f.Fuzz(func(t *testing.T, b []byte, args string) {
		conf, err := netconf.Parse(b)
		if (conf == nil) == (err == nil) {
			t.Fatalf("configuration %v beside error %v", conf, err)
		}
		if err != nil {
			return
		}
		ref, _, err := conf.Identify(args, "c1", func(string) string { return "" })
		if named := ref.Name != "" || ref.GUID != ""; named == (err != nil) {
			t.Errorf("app %+v beside error %v", ref, err)
		}
		wish, err := conf.Wish(args, "c1", func(string) string { return "" })
		if err == nil && (wish.App != ref || wish.Address.IsValid() && !wish.Address.Is4()) {
			t.Errorf("wish %+v of app %+v", wish, ref)
		}
	})
}
