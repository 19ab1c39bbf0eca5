package main

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"tulle/overlay/holder"
	"tulle/overlay/netcfg/nstest"
)

// TestTrafficLogCommand shows and switches the log of a daemon that runs.
func TestTrafficLogCommand(t *testing.T) {
	nstest.NeedTUN(t)
	nstest.NeedNamespaces(t)
	config, state, _ := serverFor(t, "cell-1")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := holder.Stop(ctx, state); err != nil {
			t.Error(err)
		}
	})
	f, err := os.OpenFile(config, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		if _, err = f.WriteString("egress:\n  log: traffic.log\n"); err == nil {
			err = f.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	start(t, config)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 0, "all off refused on c2c off c2c_refused off lines 0 written,"},
		{[]string{"c2c=on", "c2c_refused=on", "refused=off"}, 0, "all off refused off c2c on c2c_refused on lines"},
		{[]string{"c2c=off", "--output", "json"}, 0, `"allowed": false, "denied": false, "containers_allowed": false, "containers_denied": true,`},
		{[]string{"all=on"}, 0, "all on refused off c2c off c2c_refused on lines"},
		{[]string{"c2c"}, 2, `tulle-celld: "c2c": must be all, refused, c2c or c2c_refused, and =on or =off`},
		{[]string{"loud=on"}, 2, `"loud=on": must be`},
	} {
		var out, log bytes.Buffer
		code := run(t.Context(), append([]string{"traffic-log", "--config", config}, c.args...), &out, &log)
		if said := strings.Join(strings.Fields(out.String()+log.String()), " "); code != c.code || !strings.Contains(said, c.want) {
			t.Errorf("%q: exit %d, %q, want %d and %q", c.args, code, said, c.code, c.want)
		}
	}
}
