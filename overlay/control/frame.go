package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"tulle/overlay/ready"
)

// Limits of a message.
const (
	MaxRequest     = 64 << 10
	MaxAnswer      = 64 << 20 // a status with every endpoint of a large network
	MaxDescriptors = 5        // a device, a pidfd and the three sockets of TLS
)

const prefixLen = 4

// errTooLarge and errTooMany end a connection: what follows cannot be trusted
// to begin at a message.
var (
	errTooLarge = errors.New("message too large")
	errTooMany  = errors.New("too many descriptors")
)

type request struct {
	Op   string          `json:"op"`
	Body json.RawMessage `json:"body,omitempty"`
}

type answer struct {
	OK    json.RawMessage `json:"ok,omitempty"`
	Error *Error          `json:"error,omitempty"`
}

// ReadMessage reads one length-prefixed message and the descriptors beside its
// length. On success they are the caller's; on an error all are closed. io.EOF
// means that the other end closed between messages. begun, if not nil, is
// called when the first byte is there.
//
// Descriptors sent beside later bytes never enter the process: a read without
// room for control data makes the kernel close them.
func ReadMessage(c *net.UnixConn, limit, maxFiles int, begun func()) (payload []byte, files []*os.File, err error) {
	defer func() {
		if err != nil {
			CloseAll(files)
			files = nil
		}
	}()
	var prefix [prefixLen]byte
	// Room for one more than allowed, so that too many is seen and not cut off.
	oob := make([]byte, unix.CmsgSpace((maxFiles+1)*4))
	for got := 0; got < prefixLen; {
		n, oobn, flags, _, err := c.ReadMsgUnix(prefix[got:], oob)
		more, perr := parseRights(oob[:oobn])
		files = append(files, more...)
		switch {
		case err != nil && !(errors.Is(err, io.EOF) && got == 0):
			return nil, files, fmt.Errorf("read message: %w", err)
		case n == 0 && got == 0:
			return nil, files, io.EOF
		case n == 0:
			return nil, files, io.ErrUnexpectedEOF
		case perr != nil:
			return nil, files, perr
		case len(files) > maxFiles || flags&unix.MSG_CTRUNC != 0:
			return nil, files, errTooMany
		}
		if got == 0 && begun != nil {
			begun()
		}
		got += n
	}
	n := binary.BigEndian.Uint32(prefix[:])
	if uint64(n) > uint64(limit) {
		return nil, files, fmt.Errorf("%w: %d bytes, at most %d", errTooLarge, n, limit)
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(c, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, files, fmt.Errorf("read message: %w", err)
	}
	return payload, files, nil
}

// parseRights turns control data into files; what it returns beside an error is
// open as well. Go's poller does not know of them: a holder that keeps a device, or
// whoever passes one on, would be woken by each of its packets.
func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var (
		files  []*os.File
		failed error
	)
	for i := range cmsgs {
		fds, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			continue // credentials or the like: nothing to close
		}
		for _, fd := range fds {
			f, err := ready.Duplicate(uintptr(fd), "received")
			_ = unix.Close(fd)
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			files = append(files, f)
		}
	}
	return files, failed
}

// WriteMessage sends payload with files beside its first byte. The files stay
// the caller's.
func WriteMessage(c *net.UnixConn, payload []byte, files ...*os.File) error {
	b := make([]byte, prefixLen+len(payload))
	binary.BigEndian.PutUint32(b, uint32(len(payload)))
	copy(b[prefixLen:], payload)
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			// Fd would make a non-blocking file blocking for all who share it.
			raw, err := f.SyscallConn()
			if err != nil {
				return fmt.Errorf("send descriptor: %w", err)
			}
			if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
				return fmt.Errorf("send descriptor: %w", err)
			}
		}
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	if err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	if n < len(b) {
		if _, err := c.Write(b[n:]); err != nil {
			return fmt.Errorf("send message: %w", err)
		}
	}
	return nil
}

// CloseAll closes what ReadMessage returned.
func CloseAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
