package contain

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"tulle/overlay/control"
)

// FuzzReceive: what the supervisor reads from the init it has started, whose
// processes the contained command could one day get hold of. Neither bytes nor
// descriptors make it crash; a message is whole or an error, and with an error
// no descriptor stays.
func FuzzReceive(f *testing.F) {
	framed := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	f.Add(framed(`{"device":true}`), true)
	f.Add(framed(`{"exited":true,"status":-1,"error":"x","errno":7}`), false)
	f.Add(framed(`{"setup":{"command":["sh"],"mask":["/x"],"uid":{"ContainerID":1}}}`), false)
	f.Add(framed(`[]`), true)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'}, true)
	f.Add([]byte{0, 0}, false)
	f.Fuzz(func(t *testing.T, b []byte, withFile bool) {
		if len(b) > 64<<10 {
			return // more than the socket holds, and nobody reads meanwhile
		}
		parent, child, err := socketpair()
		if err != nil {
			t.Fatal(err)
		}
		defer parent.Close()
		other, err := unixConn(child)
		if err != nil {
			t.Fatal(err)
		}
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		var rights []byte
		if withFile && len(b) > 0 {
			rights = unix.UnixRights(int(null.Fd()))
		}
		if _, _, err := other.WriteMsgUnix(b, rights, nil); err != nil {
			t.Fatal(err)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		var got report
		files, err := receive(parent, &got)
		if err != nil {
			if len(files) != 0 {
				t.Errorf("%d descriptors beside %v", len(files), err)
			}
			return
		}
		defer control.CloseAll(files)
		if want := map[bool]int{true: 1}[withFile]; len(files) != want {
			t.Errorf("%d descriptors, %d were sent", len(files), want)
		}
		n := binary.BigEndian.Uint32(b)
		if !json.Valid(bytes.TrimSpace(b[4 : 4+n])) {
			t.Errorf("%q is taken for a message", b)
		}
	})
}
