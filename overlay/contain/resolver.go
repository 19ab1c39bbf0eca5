package contain

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// file is a file as the command reads it.
type file struct{ path, content string }

const (
	resolvConf   = "/etc/resolv.conf"
	nsswitchConf = "/etc/nsswitch.conf"
)

// resolverFiles makes resolv.conf and nsswitch.conf such that names are asked
// of the daemon's resolver and nobody else, from what the host has.
func resolverFiles(resolver string) ([]file, error) {
	resolv, err := readIfThere(resolvConf)
	if err != nil {
		return nil, err
	}
	nsswitch, err := readIfThere(nsswitchConf)
	if err != nil {
		return nil, err
	}
	return []file{
		{resolvConf, resolvFor(resolver, resolv)},
		{nsswitchConf, withoutResolve(nsswitch)},
	}, nil
}

// resolvFor keeps the host's search list and options (resolv.conf(5)) but not
// its nameservers, nor what our resolver cannot answer to: its answers are not
// validated.
func resolvFor(resolver, host string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "nameserver %s\n", resolver)
	for line := range strings.Lines(host) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "search", "domain":
			fmt.Fprintln(&b, strings.Join(fields, " "))
		case "options":
			kept := []string{"options"}
			for _, o := range fields[1:] {
				if o != "trust-ad" {
					kept = append(kept, o)
				}
			}
			if len(kept) > 1 {
				fmt.Fprintln(&b, strings.Join(kept, " "))
			}
		}
	}
	return b.String()
}

// withoutResolve takes the service "resolve" with its actions out of the hosts
// line (nsswitch.conf(5)): it asks the host's systemd-resolved over a unix
// socket. A file without a hosts line gets one, since the C library's default
// differs from place to place.
func withoutResolve(host string) string {
	var b strings.Builder
	hosts := false
	for line := range strings.Lines(host) {
		line = strings.TrimSuffix(line, "\n")
		text, comment, commented := strings.Cut(line, "#")
		database, services, ok := strings.Cut(text, ":")
		if !ok || strings.TrimSpace(database) != "hosts" {
			b.WriteString(line + "\n")
			continue
		}
		hosts = true
		kept := servicesWithout(services, "resolve")
		if len(kept) == 0 {
			kept = []string{"files", "dns"}
		}
		b.WriteString("hosts: " + strings.Join(kept, " "))
		if commented {
			b.WriteString(" #" + comment)
		}
		b.WriteString("\n")
	}
	if !hosts {
		b.WriteString("hosts: files dns\n")
	}
	return b.String()
}

// servicesWithout splits a line into services and bracketed actions, which may
// hold spaces, and drops one service with the action after it.
func servicesWithout(line, service string) []string {
	var kept []string
	dropping := false
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		var token string
		if line[0] == '[' {
			end := strings.IndexByte(line, ']')
			if end < 0 {
				end = len(line) - 1
			}
			token, line = line[:end+1], line[end+1:]
			if !dropping {
				kept = append(kept, token)
			}
			continue
		}
		end := strings.IndexAny(line, " \t[")
		if end < 0 {
			end = len(line)
		}
		token, line = line[:end], line[end:]
		if dropping = token == service; !dropping {
			kept = append(kept, token)
		}
	}
	return kept
}

func readIfThere(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return string(b), nil
}
