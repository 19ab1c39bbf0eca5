package api

import "tulle/policy"

// PathAppName answers a cell who an app is that one of its own apps has a policy
// with, or that it has itself. 404 for any other.
const PathAppName = "/networking/v1/internal/cells/{name}/apps/{guid}" // GET -> AppName

// AppName is an app's place in the registry; what is "" is not known there.
type AppName struct {
	GUID      policy.AppID `json:"guid"`
	Name      string       `json:"name,omitempty"`
	Space     string       `json:"space,omitempty"`
	SpaceGUID string       `json:"space_guid,omitempty"`
	Org       string       `json:"org,omitempty"`
	OrgGUID   string       `json:"org_guid,omitempty"`
}
