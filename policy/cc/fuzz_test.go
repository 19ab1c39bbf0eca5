package cc

import (
	"slices"
	"strings"
	"testing"
)

// FuzzDecodePage: the Cloud Controller's answer. What is a list has both its
// parts, and the next page, if there is one, has a number.
func FuzzDecodePage(f *testing.F) {
	f.Add([]byte(`{"pagination":{"next":null},"resources":[{"guid":"a","relationships":{"space":{"data":{"guid":"s"}}}}]}`))
	f.Add([]byte(`{"pagination":{"next":{"href":"https://x/v3/apps?page=2"}},"resources":[{"guid":"a","links":{"space":{"href":"https://x/v3/spaces/s"}}}]}`))
	f.Add([]byte(`{"pagination":{"next":{"href":"%"}},"resources":[null]}`))
	f.Add([]byte(`{"resources":[]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		apps, next, err := decodePage[app](body)
		if err != nil && (apps != nil || next != nil) || next != nil && next.Get("page") == "" {
			t.Fatalf("%v, %v, %v", apps, next, err)
		}
		for _, a := range apps {
			if strings.Contains(a.space(), "/") && a.Relationships.Space.guid() == "" {
				t.Fatalf("space %q", a.space())
			}
		}
		roles, _, _ := decodePage[role](body)
		for _, r := range roles {
			_ = r.Relationships.User.guid() + r.Relationships.Space.guid()
		}
	})
}

// FuzzChunks: ids come from users. Each that can be a guid stands in exactly one
// request, and none can bring another along.
func FuzzChunks(f *testing.F) {
	f.Add("a b c,d \x00 " + strings.Repeat("x", 300))
	f.Add(strings.Repeat("g \u00fc ", 300))
	f.Fuzz(func(t *testing.T, text string) {
		ids := strings.Split(text, " ")
		seen := map[string]bool{}
		for _, chunk := range chunks(ids) {
			if len(chunk) == 0 || len(chunk) > chunkGUIDs {
				t.Fatalf("a chunk of %d", len(chunk))
			}
			for _, g := range chunk {
				if seen[g] || g == "" || strings.Contains(g, ",") || !slices.Contains(ids, g) {
					t.Fatalf("%q", g)
				}
				seen[g] = true
			}
		}
	})
}
