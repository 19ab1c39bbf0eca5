package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"tulle/cmd/internal/demo"
	"tulle/cmd/tulle-bench/internal/traffic"
	"tulle/policy"
	"tulle/policy/api"
)

// nobodyRole is all of Tulle on one host, as whoever starts it: a server, two
// cells on loopback addresses, and a container on each with `tulle run`. It
// answers as the client's generator does.
const nobodyRole = "nobody"

// containerRole is a generator in a user and network namespace of its own.
const containerRole = "container"

func beNobody(ctx context.Context, _ []string, in io.Reader, out io.Writer) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	up, cancel := context.WithTimeout(ctx, setUpPatience)
	defer cancel()
	w, err := demo.NewWorld(demo.Options{Mode: string(api.ModeVXLAN), BinDir: filepath.Dir(self)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := w.StartServer(up); err != nil {
		return err
	}
	var ends [2]*traffic.Generator
	var addrs [2]netip.Addr
	for i, app := range []string{clientApp, serverApp} {
		cell, err := w.StartCell(up, fmt.Sprintf("cell-%d", i+1), netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}))
		if err != nil {
			return err
		}
		if ends[i], err = contained(w, cell, app, self); err != nil {
			return err
		}
		defer ends[i].Close() // before the world ends
		s, err := cell.Status(up)
		if err != nil {
			return err
		}
		if len(s.Endpoints) != 1 {
			return fmt.Errorf("%s has %d containers, want one", cell.Name, len(s.Endpoints))
		}
		addrs[i] = s.Endpoints[0].Address
	}
	if err := allowPair(up, w); err != nil {
		return err
	}
	if _, err := ends[0].Do(traffic.Order{Do: "reach", To: addrs[1], Time: reachPatience}); err != nil {
		return err
	}
	return ends[0].Relay(in, out, addrs[1])
}

func allowPair(ctx context.Context, w *demo.World) error {
	api, err := w.Client()
	if err != nil {
		return err
	}
	return api.Allow(ctx, clientApp, serverApp, policy.TCP, ports)
}

// contained is a generator in a container of an app.
func contained(w *demo.World, cell *demo.Cell, app, self string) (*traffic.Generator, error) {
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer inRead.Close()
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, inWrite.Close())
	}
	defer outWrite.Close()
	err = w.Contain(cell, app, inRead, outWrite, append([]string{self}, traffic.Arguments()...)...)
	if err != nil {
		return nil, errors.Join(err, inWrite.Close(), outRead.Close())
	}
	return traffic.Over(inWrite, outRead)
}

// beContainer has the namespaces made for a child: a program of many threads
// cannot enter a user namespace itself.
func beContainer(_ context.Context, _ []string, in io.Reader, out io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, traffic.Arguments()...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	return cmd.Run()
}
