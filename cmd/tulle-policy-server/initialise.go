package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"tulle/policy/auth"
	"tulle/policy/ca"
)

// adminToken is the file with the first token, beside the configuration.
const adminToken = "admin.token"

func initCommand(p *place) *cobra.Command {
	c := defaults()
	network := c.Network.String()
	var hosts []string
	cmd := &cobra.Command{
		Use:   "init --dir DIR",
		Short: "Make the roots, the first token and a configuration",
		Long: "Makes DIR with the three roots (pki), the tokens file, an admin token (admin.token) and\n" +
			"config.yaml, after which `tulle-policy-server serve --dir DIR` works. Overwrites nothing.",
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			prefix, err := netip.ParsePrefix(network)
			if err != nil {
				return &usageError{fmt.Errorf("--network: %w", err)}
			}
			c.Network = prefix
			for _, h := range slices.Concat(hosts, hostOf(c.Internal), hostOf(c.Legacy)) {
				if !slices.Contains(c.Hosts, h) {
					c.Hosts = append(c.Hosts, h)
				}
			}
			if err := c.Validate(); err != nil {
				return &usageError{err}
			}
			if err := initialise(p.dir, c); err != nil {
				return fmt.Errorf("init %s: %w", p.dir, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "configuration: %s\nadmin token: %s\nstart it: tulle-policy-server serve --dir %s\n",
				filepath.Join(p.dir, configFile), filepath.Join(p.dir, adminToken), p.dir)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&network, "network", network, "the overlay network")
	f.IntVar(&c.LeaseBits, "lease-bits", c.LeaseBits, "prefix length of a cell's part of the network")
	f.StringVar(&c.Database, "database", c.Database, "the SQLite file, or a postgres:// URL")
	f.StringVar(&c.External, "external", c.External, "host:port of the external API")
	f.StringVar(&c.Internal, "internal", c.Internal, "host:port of the internal API")
	f.StringVar(&c.Legacy, "legacy", "", "host:port of the lease API of silk cells; makes the legacy root ("+legacyAddress+" where none is given)")
	f.Lookup("legacy").NoOptDefVal = legacyAddress
	f.StringVar(&c.Metrics, "metrics", c.Metrics, "host:port of the metrics")
	f.StringSliceVar(&hosts, "host", nil, "another name or address that cells reach the server by")
	return cmd
}

// hostOf is the host of an address that says one.
func hostOf(address string) []string {
	host, _, err := net.SplitHostPort(address)
	if ip, ipErr := netip.ParseAddr(host); err != nil || host == "" || ipErr == nil && ip.IsUnspecified() {
		return nil
	}
	return []string{host}
}

// initialise makes the directory's content, or nothing.
func initialise(dir string, c *config) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var made []string // what is undone when something goes wrong
	defer func() {
		if err != nil {
			for _, path := range slices.Backward(made) {
				err = errors.Join(err, os.RemoveAll(path))
			}
		}
	}()
	for _, name := range []string{c.PKI, c.Tokens, adminToken, configFile} {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s exists already; nothing was changed", path)
		}
	}
	pki := filepath.Join(dir, c.PKI)
	made = append(made, pki)
	if _, err := ca.Create(pki); err != nil {
		return err
	}
	if c.Legacy != "" {
		if _, err := ca.CreateLegacy(pki); err != nil {
			return err
		}
	}
	text, entry := auth.NewToken("admin", auth.Admin)
	tokens, err := auth.EncodeTokens([]auth.Token{entry})
	if err != nil {
		return err
	}
	settings, err := c.file()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		text []byte
	}{{c.Tokens, tokens}, {adminToken, []byte(text + "\n")}, {configFile, settings}} {
		path := filepath.Join(dir, f.name)
		made = append(made, path)
		if err := writeNew(path, f.text); err != nil {
			return err
		}
	}
	return give(dir, made...)
}

// writeNew writes a file that is not there yet, for its owner alone: all of it or
// none, half a backup would pass for one.
func writeNew(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// file is the configuration as init writes it: what an operator may want to
// change. The rest has its defaults.
func (c *config) file() ([]byte, error) {
	values := &yaml.Node{Kind: yaml.MappingNode}
	for _, kv := range []struct {
		key     string
		value   any
		comment string
	}{
		{"external", c.External, "host:port of the API for users"},
		{"internal", c.Internal, "host:port of the API for cells"},
		{"legacy", c.Legacy, "host:port of the lease API of silk cells; \"\": off, and no legacy client is let in anywhere"},
		{"metrics", c.Metrics, "host:port of /metrics; \"\" switches it off"},
		{"hosts", c.Hosts, "names and addresses that cells reach the internal API by"},
		{"database", c.Database, "paths are relative to this file"},
		{"pki", c.PKI, ""},
		{"tokens", c.Tokens, ""},
		{"network", c.Network.String(), "the overlay network; must not overlap with anything containers reach"},
		{"lease_bits", c.LeaseBits, "a cell's part of it"},
		{"lease_lifetime", c.LeaseLifetime.String(), ""},
	} {
		var key, value yaml.Node
		key.SetString(kv.key)
		if err := value.Encode(kv.value); err != nil {
			return nil, err
		}
		if value.Kind == yaml.SequenceNode {
			value.Style = yaml.FlowStyle
		}
		value.LineComment = kv.comment
		values.Content = append(values.Content, &key, &value)
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(values); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}
