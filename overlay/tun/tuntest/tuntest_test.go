package tuntest_test

import (
	"context"
	"errors"
	"testing"

	"tulle/overlay/packet"
	"tulle/overlay/tun"
	"tulle/overlay/tun/tuntest"
)

func TestBothWays(t *testing.T) {
	dev, c := tuntest.New()
	v := packet.Virtio{Flags: 1, GSOType: 5, GSOSize: 7}
	c.SendVirtio(v, []byte("out"))
	c.Send([]byte("plain"))
	if c.Unread() != 2 {
		t.Errorf("%d unread", c.Unread())
	}
	b := make([]byte, tun.MaxRead)
	var got packet.Virtio
	n, err := dev.Read(b)
	packet.DecodeVirtio(b, &got)
	if err != nil || got != v || string(b[tun.HeaderLen:n]) != "out" {
		t.Errorf("read %+v %q, %v", got, b[:n], err)
	}
	if n, err = dev.Read(b); err != nil || string(b[tun.HeaderLen:n]) != "plain" {
		t.Errorf("read %q, %v", b[:n], err)
	}

	header := make([]byte, tun.HeaderLen)
	v.Encode(header)
	in := []byte("in")
	if err := dev.Write(header, in, []byte(" pieces")); err != nil {
		t.Fatal(err)
	}
	in[0] = 'X' // the pieces are the writer's again
	got, p, err := c.Receive(context.Background())
	if err != nil || got != v || string(p) != "in pieces" || c.Pending() != 0 {
		t.Errorf("received %+v %q, %v", got, p, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := c.Receive(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("receive nothing: %v", err)
	}
}

func TestClose(t *testing.T) {
	dev, c := tuntest.New()
	failed := make(chan error)
	go func() {
		_, err := dev.Read(make([]byte, tun.MaxRead))
		failed <- err
	}()
	dev.Close()
	dev.Close()
	if err := <-failed; !errors.Is(err, tun.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if err := dev.Write([]byte("x")); !errors.Is(err, tun.ErrClosed) {
		t.Errorf("write: %v", err)
	}
	<-c.Closed()
}
