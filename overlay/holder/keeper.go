package holder

import (
	"fmt"
	"os"

	"tulle/overlay/ready"
)

// Keeper keeps one descriptor a name. Names are container ids: letters, digits,
// '_', '.' and '-'.
type Keeper interface {
	// Take returns duplicates of all that was kept when the daemon started.
	// They stay kept.
	Take() (map[string]*os.File, error)
	// Put keeps a duplicate of f, in the place of one of the same name.
	Put(name string, f *os.File) error
	// Drop forgets a name; one that is not kept is no error.
	Drop(name string) error
	// Len is how many are kept.
	Len() int
	// Close ends the daemon's use. What is kept stays kept.
	Close() error
}

// Duplicate is a second descriptor of what f is, close-on-exec. Nobody waits for it, so
// Go's poller is not told of it.
func Duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	var d *os.File
	// Not f.Fd: that would make the shared description blocking.
	if e := raw.Control(func(fd uintptr) { d, err = ready.Duplicate(fd, f.Name()) }); e != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", e)
	}
	return d, err
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
