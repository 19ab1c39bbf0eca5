package postgres_test

import (
	"fmt"
	"testing"

	"tulle/policy"
	"tulle/policy/store/pgtest"
)

// BenchmarkOnePolicy is a create and a delete of one policy, each durable, beside
// many others. Without fsync it shows what the way to the database and back
// costs, again and again in one transaction.
func BenchmarkOnePolicy(b *testing.B) {
	for _, fsync := range []string{"on", "off"} {
		for _, n := range []int{10, 60_000} {
			b.Run(fmt.Sprintf("fsync=%s/%d", fsync, n), func(b *testing.B) {
				s := open(b, pgtest.Start(b, "fsync = "+fsync).Database(), options())
				all := make([]policy.Policy, n)
				for i := range all {
					all[i] = tcp(policy.AppID(fmt.Sprint("source-", i%20_000)), policy.AppID(fmt.Sprint("destination-", i%19_997)), 1+i%60_000)
				}
				for len(all) > 0 {
					part := all[:min(10_000, len(all))]
					if _, err := s.AddPolicies(b.Context(), part); err != nil {
						b.Fatal(err)
					}
					all = all[len(part):]
				}
				one := []policy.Policy{tcp("source-1", "new", 7)}
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
}
