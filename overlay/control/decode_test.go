package control

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestDecodeRequestNamesTheFault(t *testing.T) {
	cases := []struct{ name, body, want string }{
		{"no container", `{"app":{"guid":"g"},"device":"eth0","lifeline":"none"}`, "container"},
		{"path as container", `{"container":"../x","app":{"guid":"g"},"device":"eth0","lifeline":"none"}`, "container"},
		{"long container", `{"container":"` + strings.Repeat("c", 129) + `","app":{"guid":"g"},"device":"eth0","lifeline":"none"}`, "container"},
		{"no app", `{"container":"c","device":"eth0","lifeline":"none"}`, "names no app"},
		{"newline in an app", `{"container":"c","app":{"name":"a\nb"},"device":"eth0","lifeline":"none"}`, "app"},
		{"no device", `{"container":"c","app":{"guid":"g"},"lifeline":"none"}`, "device"},
		{"long device", `{"container":"c","app":{"guid":"g"},"device":"sixteen-letters!","lifeline":"none"}`, "device"},
		{"device with a slash", `{"container":"c","app":{"guid":"g"},"device":"a/b","lifeline":"none"}`, "device"},
		{"unknown lifeline", `{"container":"c","app":{"guid":"g"},"device":"eth0","lifeline":"prayer"}`, "lifeline"},
		{"pidfd missing", `{"container":"c","app":{"guid":"g"},"device":"eth0","lifeline":"pidfd"}`, "takes 2 descriptors"},
		{"newline in a network", `{"container":"c","app":{"guid":"g"},"device":"eth0","lifeline":"none","network":"a\nb"}`, "network"},
		{"IPv6 address", `{"container":"c","app":{"guid":"g"},"device":"eth0","lifeline":"none","address":"fd00::1"}`, "IPv4"},
		{"no address", `{"container":"c","app":{"guid":"g"},"device":"eth0","lifeline":"none","address":"here"}`, "attach"},
		{"wrong type", `{"container":7}`, "attach"},
		{"sockets of TLS missing", `{"container":"c","app":{"guid":"g"},"device":"eth0","lifeline":"none","tls":{}}`, "takes 4 descriptors"},
		{"unknown identity", `{"container":"c","app":{"guid":"g"},"device":"eth0","lifeline":"none","tls":{"identity":"x","off":"y"}}`, "identity"},
		{"the reserved port", `{"container":"c","app":{"guid":"g"},"device":"eth0","lifeline":"none","tls":{"backend":61443,"off":"y"}}`, "reserved"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := decodeRequest([]byte(`{"op":"attach","body":`+c.body+`}`), 1)
			if codeOf(err) != CodeBadRequest || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want a bad request that says %q", err, c.want)
			}
		})
	}
}

// The sender is any process that may open the socket. Property: no panic; a
// refusal is a bad_request; what is accepted is within limits and reads the same
// when written again.
func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"op":"attach","body":{"container":"c1","app":{"guid":"g"},"device":"eth0","lifeline":"none"}}`), 1)
	f.Add([]byte(`{"op":"attach","body":{"container":"c1","app":{"name":"web","space":"s","org":"o"},"instance":"0","device":"eth0","lifeline":"pidfd","resume":true}}`), 2)
	f.Add([]byte(`{"op":"detach","body":{"container":"c1"}}`), 0)
	f.Add([]byte(`{"op":"gc","body":{"network":"n","keep":["c1","c1.eth1"]}}`), 0)
	f.Add([]byte(`{"op":"list"}`), 0)
	f.Add([]byte(`{"op":"status","body":null}`), 0)
	f.Add([]byte(`{"op":"attach","body":{"container":"c1","app":{"guid":"g"},"device":"eth0","lifeline":"pidfd","tls":{"backend":80,"client_certificate":true,"identity":"proxy"}}}`), 5)
	f.Add([]byte(`{"op":"attach","body":{"container":"c1","app":{"guid":"g"},"device":"eth0","lifeline":"none","tls":{"off":"port in use"}}}`), 1)
	f.Add([]byte(`{"op":"tls_list","body":{"version":3}}`), 0)
	f.Add([]byte(`{"op":"tls_sockets","body":{"container":"c1"}}`), 0)
	f.Add([]byte(`{"op":"tls_certificate","body":{"container":"c1","fresh":true}}`), 0)
	f.Add([]byte(`{"op":"tls_caller","body":{"container":"c1","peer":"10.255.1.2:4711"}}`), 0)
	f.Add([]byte(`{"op":"rotate-key","body":{"follow":7}}`), 0)
	f.Add([]byte(`[`), 0)
	f.Fuzz(func(t *testing.T, payload []byte, files int) {
		got, err := decodeRequest(payload, files)
		if err != nil {
			if codeOf(err) != CodeBadRequest {
				t.Fatalf("refusal %v has code %q", err, codeOf(err))
			}
			return
		}
		var op string
		switch r := got.(type) {
		case Attach:
			op = opAttach
			if len(r.Container) > maxContainer || len(r.Device) > maxDevice || files < 1 || files > MaxDescriptors {
				t.Fatalf("accepted %+v with %d files", r, files)
			}
		case Detach:
			op = opDetach
		case GC:
			op = opGC
			if r.Network == "" {
				t.Fatalf("accepted %+v", r)
			}
		case RotateKey:
			op = opRotateKey
		case listRequest:
			op = opList
		case statusRequest:
			op = opStatus
		case TLSList:
			op = opTLSList
		case TLSSockets:
			op = opTLSSockets
		case TLSCertificate:
			op = opTLSCertificate
		case TLSCaller:
			op = opTLSCaller
			if !r.Peer.IsValid() {
				t.Fatalf("accepted %+v", r)
			}
		default:
			t.Fatalf("accepted as %T", got)
		}
		body, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(request{Op: op, Body: body})
		if err != nil {
			t.Fatal(err)
		}
		if second, err := decodeRequest(again, files); err != nil || !reflect.DeepEqual(second, got) {
			t.Fatalf("%+v reads as %+v, %v", got, second, err)
		}
	})
}
