package api

// GroupChange is what changed of the security groups that concern a cell. They have
// no revision of their own, and nothing acknowledges them: each watch begins with all.
type GroupChange struct {
	// Whole: Set is all there is.
	Whole   bool            `json:"whole,omitempty"`
	Removed []string        `json:"removed,omitempty"` // GUIDs
	Set     []SecurityGroup `json:"set,omitempty"`
}
