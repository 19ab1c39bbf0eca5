package main

import (
	"context"
	"fmt"

	"tulle/policy"
	"tulle/policy/store"
)

// firstGroup gives a network that stands alone its first security group, once: who
// removes or changes it has the last word.
func firstGroup(ctx context.Context, s store.SecurityGroupStore) error {
	at, err := s.SecurityGroupsUpdated(ctx)
	if err != nil || at.UnixMicro() != 0 {
		return err
	}
	if err := s.PutSecurityGroup(ctx, policy.PublicGroup()); err != nil {
		return fmt.Errorf("security group for a network that stands alone: %w", err)
	}
	return nil
}
