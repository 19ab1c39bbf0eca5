package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"tulle/overlay/control"
)

// Limits of the protocol, which is control's framing with messages of its own.
const (
	maxRequest = 4 << 10
	maxAnswer  = 64 << 10
	maxName    = 200 // well under FDNAME's 255 and a chunk's share of maxAnswer
	// chunk is how many descriptors one answer carries; the kernel takes 253
	// (SCM_MAX_FD).
	chunk = 128
)

const (
	opPut  = "put"
	opDrop = "drop"
	opTake = "take"
	opStop = "stop"
)

type request struct {
	Op   string `json:"op"`
	Name string `json:"name,omitempty"`
}

// answer to take: the names of the descriptors beside it, and whether more follow.
type answer struct {
	Error string   `json:"error,omitempty"`
	Names []string `json:"names,omitempty"`
	More  bool     `json:"more,omitempty"`
}

func decodeRequest(b []byte, files int) (request, error) {
	var r request
	if err := json.Unmarshal(b, &r); err != nil {
		return request{}, fmt.Errorf("not a request: %w", err)
	}
	want, named := 0, false
	switch r.Op {
	case opPut:
		want, named = 1, true
	case opDrop:
		named = true
	case opTake, opStop:
	default:
		return request{}, fmt.Errorf("unknown operation %.32q", r.Op)
	}
	if files != want {
		return request{}, fmt.Errorf("%s takes %d descriptors, %d came", r.Op, want, files)
	}
	if named {
		return r, checkName(r.Name)
	}
	return r, nil
}

func checkName(name string) error {
	ok := len(name) > 0 && len(name) <= maxName
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		ok = 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '-'
	}
	if !ok {
		return fmt.Errorf("name %.32q: 1 to %d letters, digits, '_', '.' and '-'", name, maxName)
	}
	return nil
}

func send(c *net.UnixConn, v any, files ...*os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return control.WriteMessage(c, b, files...)
}

func receive(c *net.UnixConn) (answer, []*os.File, error) {
	b, files, err := control.ReadMessage(c, maxAnswer, chunk, nil)
	if err != nil {
		return answer{}, nil, err
	}
	var a answer
	if err := json.Unmarshal(b, &a); err != nil {
		control.CloseAll(files)
		return answer{}, nil, err
	}
	if a.Error != "" || len(a.Names) != len(files) {
		control.CloseAll(files)
		if a.Error == "" {
			a.Error = fmt.Sprintf("%d names for %d descriptors", len(a.Names), len(files))
		}
		return answer{}, nil, errors.New(a.Error)
	}
	return a, files, nil
}
