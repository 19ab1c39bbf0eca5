package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

const (
	suffix    = ".pair"
	trustFile = "trust.pem" // a container's file has another suffix
)

func readAll(dir string, log *slog.Logger) (pairs map[string]*Pair, trust string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", err
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, "", err
	}
	pairs = map[string]*Pair{}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		container, ours := strings.CutSuffix(f.Name(), suffix)
		if !ours {
			if f.Name() != trustFile {
				continue
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return nil, "", err
			}
			trust = string(b)
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, "", err
		}
		var p Pair
		if err := json.Unmarshal(b, &p); err != nil || p.Certificate == "" || p.Key == "" {
			// A new one is had for the asking.
			log.Warn("certificate file is of no use", "file", path, "err", err)
			continue
		}
		pairs[container] = &p
	}
	return pairs, trust, nil
}

func write(dir, container string, p *Pair) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, container+suffix), b, 0o600)
}

func writeTrust(dir, trust string) error {
	return WriteFile(filepath.Join(dir, trustFile), []byte(trust), 0o600)
}

func remove(dir, container string) error {
	err := os.Remove(filepath.Join(dir, container+suffix))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// WriteFile replaces a file as a whole: a reader sees the one or the other.
func WriteFile(path string, b []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
