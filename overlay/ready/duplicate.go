package ready

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Duplicate is a second descriptor of what fd is, close-on-exec, of which Go's poller
// does not know: os.NewFile gives it each descriptor that does not block, and then
// there is a wake-up, and a thread that looks who it is for, at each packet, whoever
// waits for it and whichever duplicate he has.
func Duplicate(fd uintptr, name string) (*os.File, error) {
	// A file of something that blocks, which then becomes the other: whether fd blocks
	// is a matter of all duplicates, and stays as it is.
	own, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	f := os.NewFile(uintptr(own), name)
	if err := unix.Dup3(int(fd), own, unix.O_CLOEXEC); err != nil {
		f.Close()
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return f, nil
}
