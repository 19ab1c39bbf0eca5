package store

import (
	"context"
	"time"

	"tulle/policy"
)

// SecurityGroupStore keeps security groups. Agents poll them; they are no part
// of a cell's revisions.
type SecurityGroupStore interface {
	// SecurityGroups lists a page of groups in the order in which they came to
	// be, and where the next page begins (0: this was the last).
	SecurityGroups(ctx context.Context, f GroupFilter) (page []policy.SecurityGroup, next int64, err error)
	// SecurityGroup is one of them. ErrNotFound.
	SecurityGroup(ctx context.Context, guid string) (policy.SecurityGroup, error)
	// PutSecurityGroup stores a group under its GUID, new or in place of what was
	// there.
	PutSecurityGroup(ctx context.Context, g policy.SecurityGroup) error
	// DeleteSecurityGroup removes a group. ErrNotFound.
	DeleteSecurityGroup(ctx context.Context, guid string) error
	// ReplaceSecurityGroups makes the list what there is, by one change.
	ReplaceSecurityGroups(ctx context.Context, gs []policy.SecurityGroup) error
	// SecurityGroupsUpdated is the time of the last change of any group. A write
	// that changes nothing leaves it; otherwise it grows, whatever the clock does.
	SecurityGroupsUpdated(ctx context.Context) (time.Time, error)
}

// GroupFilter selects groups: all, or the defaults and those that hold for one
// of the spaces.
type GroupFilter struct {
	All    bool
	Spaces []string
	From   int64 // where the page begins; 0: at the first
	Limit  int   // groups in the page; 0 or less: no limit
}
