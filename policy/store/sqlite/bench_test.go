package sqlite_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"tulle/policy"
	"tulle/policy/store"
	"tulle/policy/store/sqlite"
)

// filled is a store with n policies among a thousand apps.
func filled(b *testing.B, n int) store.Store {
	b.Helper()
	s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "policy.db"), options())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	all := many(n)
	for len(all) > 0 {
		part := all[:min(10_000, len(all))]
		if _, err := s.AddPolicies(b.Context(), part); err != nil {
			b.Fatal(err)
		}
		all = all[len(part):]
	}
	return s
}

// BenchmarkOnePolicy is a create and a delete of one policy, each durable.
func BenchmarkOnePolicy(b *testing.B) {
	for _, n := range []int{10, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := filled(b, n)
			one := []policy.Policy{{Source: "source-1", Destination: "destination-2", Protocol: policy.UDP, Ports: policy.PortRange{Start: 7, End: 7}}}
			for b.Loop() {
				if _, err := s.AddPolicies(b.Context(), one); err != nil {
					b.Fatal(err)
				}
				if _, err := s.RemovePolicies(b.Context(), one); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkBulk is one create of 10,000 policies into an empty store.
func BenchmarkBulk(b *testing.B) {
	for b.Loop() {
		filled(b, 10_000)
	}
}

// BenchmarkState is what a server reads when it starts.
func BenchmarkState(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := filled(b, n)
			for b.Loop() {
				if _, err := s.State(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
