package overlay

import (
	"path/filepath"
	"slices"
	"testing"

	"tulle/overlay/control"
)

// An attacher that contains its command learns what to hide from it: the
// directories with the cell's key, its journal and its sockets, and what else the
// daemon was told of.
func TestAttachNamesWhatToHide(t *testing.T) {
	p := newPlane(t)
	one := p.cell("one", "127.0.0.1", func(c *Config) { c.Hide = []string{"/srv/secrets"} })
	web := one.attach("web-1", "web", control.LifelineConnection)
	for _, dir := range []string{one.cfg.StateDir, one.cfg.Credentials, filepath.Dir(one.cfg.Socket), "/srv/secrets"} {
		if !slices.Contains(web.at.Mask, dir) {
			t.Errorf("the answer names %q, not %s", web.at.Mask, dir)
		}
	}
}
