package control

import "context"

// TrafficLogSet switches what is written to the traffic log, until the daemon starts
// again; nil leaves a switch as it is. Only the daemon's own user and root may; all
// nil only asks, which whoever may use the cell may.
type TrafficLogSet struct {
	Allowed           *bool `json:"allowed,omitempty"` // conversations with the outside
	Denied            *bool `json:"denied,omitempty"`
	ContainersAllowed *bool `json:"containers_allowed,omitempty"` // of containers with each other
	ContainersDenied  *bool `json:"containers_denied,omitempty"`
}

// TrafficLog is what is written, and where, and what became of it so far.
type TrafficLog struct {
	File              string `json:"file,omitempty"` // "": there is none, and nothing can be switched on
	Allowed           bool   `json:"allowed"`
	Denied            bool   `json:"denied"`
	ContainersAllowed bool   `json:"containers_allowed"`
	ContainersDenied  bool   `json:"containers_denied"`
	Written           uint64 `json:"written"`
	Limited           uint64 `json:"limited"` // more than a container may have
	Lost              uint64 `json:"lost"`    // there was no room for them
	Failed            uint64 `json:"failed"`  // they could not be written
}

// asks reports whether nothing is to be switched.
func (s TrafficLogSet) asks() bool { return s == TrafficLogSet{} }

// TrafficLog switches the log, and says what holds now.
func (c *Client) TrafficLog(ctx context.Context, s TrafficLogSet) (TrafficLog, error) {
	var got TrafficLog
	err := c.do(ctx, opTrafficLog, s, &got)
	return got, err
}
