package wireguard

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// KeyFile is the name of the file with the cell's keys in its state directory.
const KeyFile = "wireguard.key"

// maxKeyFile is more than two lines of it.
const maxKeyFile = 256

// Keys are a cell's own. Beside the current key there is at most one other: the
// next, before it becomes the current, or the old, before it is forgotten.
type Keys struct {
	Current, Next, Old PrivateKey
	// Alone: the current key is published without the old one.
	Alone bool
}

// Other is the second key; the zero PrivateKey if there is none.
func (k Keys) Other() PrivateKey {
	if k.Next.IsZero() {
		return k.Old
	}
	return k.Next
}

// What stands before the second key in the file.
const (
	nextWord = "next "
	oldWord  = "old "
	lastWord = "last " // old, and published no more
)

// LoadKeys reads the cell's keys from its state directory, or makes a first one
// there. The file is the owner's alone (0600), and one that others may read is
// refused: its keys may be known. It has the current key in base64, as wg(8) writes
// it, and while the cell rotates its key a second line.
func LoadKeys(dir string) (Keys, error) {
	k, err := readKeys(filepath.Join(dir, KeyFile))
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	if k.Current, err = GenerateKey(); err != nil {
		return k, err
	}
	return k, SaveKeys(dir, k)
}

// SaveKeys puts the keys on the disk in the place of what is there, whole or not
// at all.
func SaveKeys(dir string, k Keys) error {
	text := k.Current.base64() + "\n"
	switch {
	case !k.Next.IsZero():
		text += nextWord + k.Next.base64() + "\n"
	case !k.Old.IsZero() && k.Alone:
		text += lastWord + k.Old.base64() + "\n"
	case !k.Old.IsZero():
		text += oldWord + k.Old.base64() + "\n"
	}
	path := filepath.Join(dir, KeyFile)
	if err := replace(path, text); err != nil {
		return fmt.Errorf("tunnel key %s: %w", path, err)
	}
	return nil
}

func (k PrivateKey) base64() string { return base64.StdEncoding.EncodeToString(k.scalar[:]) }

func readKeys(path string) (k Keys, err error) {
	f, err := os.Open(path)
	if err != nil {
		return k, fmt.Errorf("tunnel key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return k, fmt.Errorf("tunnel key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return k, fmt.Errorf("tunnel key %s: mode %04o lets others read it; chmod 600 it, or remove it and a new one is made", path, info.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return k, fmt.Errorf("tunnel key %s: %w", path, err)
	}
	if k, err = parseKeys(string(b)); err != nil {
		return k, fmt.Errorf("tunnel key %s: %w", path, err)
	}
	return k, nil
}

var errKeyFile = errors.New("not 32 bytes in base64, alone or with one line behind it, \"next KEY\", \"old KEY\" or \"last KEY\"")

func parseKeys(text string) (k Keys, err error) {
	first, second, more := strings.Cut(strings.TrimSuffix(text, "\n"), "\n")
	if k.Current, err = parseKey(first); err != nil || !more {
		return k, err
	}
	next, isNext := strings.CutPrefix(second, nextWord)
	old, isOld := strings.CutPrefix(second, oldWord)
	last, isLast := strings.CutPrefix(second, lastWord)
	switch {
	case isNext:
		k.Next, err = parseKey(next)
	case isOld:
		k.Old, err = parseKey(old)
	case isLast:
		k.Alone = true
		k.Old, err = parseKey(last)
	default:
		err = errKeyFile
	}
	if err == nil && k.Other() == k.Current {
		err = errKeyFile
	}
	return k, err
}

func parseKey(s string) (k PrivateKey, err error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) != len(k.scalar) || strings.ContainsAny(s, "\r\n") || [32]byte(raw) == [32]byte{} {
		return k, errKeyFile
	}
	copy(k.scalar[:], raw)
	return k, nil
}

// replace writes beside the file, and puts that in its place by rename.
func replace(path, text string) error {
	next := path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a write that a crash ended
		return err
	}
	err := writeSynced(next, text)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(next))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
