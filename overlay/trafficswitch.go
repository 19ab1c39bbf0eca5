package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"tulle/overlay/control"
)

// serveSwitch answers, until ctx ends, what operators of the original ask its policy
// agent at 127.0.0.1:8721: whether what policies allow between containers is logged,
// and to do so or not. Any process of the host may ask; containers reach no address
// of it.
func (t *traffic) serveSwitch(ctx context.Context) error {
	at := t.l.d.cfg.Egress.LogSwitch
	if !at.IsValid() || t.log == nil {
		return nil
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", at.String())
	if err != nil {
		return fmt.Errorf("egress.log_switch: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/iptables-c2c-logging", t.switchOverHTTP)
	server := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 14}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("egress.log_switch: %w", err)
	}
	return nil
}

// switchOverHTTP answers byte for byte as the original: any method is answered with
// the state, and PUT changes it before.
func (t *traffic) switchOverHTTP(w http.ResponseWriter, r *http.Request) {
	refuse := func(why string) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{ "error": "`+why+`" }`)
	}
	var s control.TrafficLogSet
	if r.Method == http.MethodPut {
		var body struct {
			Enabled *bool `json:"enabled"`
		}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&body); err != nil {
			refuse("decoding request body as json")
			return
		}
		if body.Enabled == nil {
			refuse("missing required key 'enabled'")
			return
		}
		s.ContainersAllowed = body.Enabled
	}
	_ = json.NewEncoder(w).Encode(struct {
		Enabled bool `json:"enabled"`
	}{t.set(s).ContainersAllowed})
}
