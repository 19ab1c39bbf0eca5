package ca

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// rootCommand stands in the place of key.pem where the key is somewhere else,
// such as in a KMS: a command and its arguments, on one line.
const rootCommand = "key.command"

// commandTimeout bounds one signature.
const commandTimeout = 10 * time.Second

// readSigner is the key in dir: key.pem, or what key.command reaches.
func readSigner(dir string, public crypto.PublicKey) (crypto.Signer, error) {
	line, err := os.ReadFile(filepath.Join(dir, rootCommand))
	if errors.Is(err, fs.ErrNotExist) {
		return readKey(filepath.Join(dir, rootKey))
	}
	if err != nil {
		return nil, err
	}
	argv := strings.Fields(string(line))
	if len(argv) == 0 {
		return nil, fmt.Errorf("read %s: it names no command", rootCommand)
	}
	return commandKey{argv: argv, dir: dir, public: public}, nil
}

// commandKey signs by a command: it gets the digest on standard input and the
// digest's name (SHA-256, SHA-384, SHA-512) as its last argument, and answers with
// the signature: for an ECDSA key ASN.1, for RSA PKCS #1 v1.5. So any KMS that has
// a command line is one for us, and no library of any vendor is in the server.
type commandKey struct {
	argv   []string
	dir    string
	public crypto.PublicKey
}

// Public implements crypto.Signer.
func (k commandKey) Public() crypto.PublicKey { return k.public }

// Sign implements crypto.Signer.
func (k commandKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, k.argv[0], append(k.argv[1:len(k.argv):len(k.argv)], opts.HashFunc().String())...)
	cmd.Dir = k.dir
	cmd.Stdin = bytes.NewReader(digest)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	cmd.WaitDelay = time.Second
	signature, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("sign by %s: %w: %s", k.argv[0], err, bytes.TrimSpace(complaint.Bytes()))
	}
	if len(signature) == 0 {
		return nil, fmt.Errorf("sign by %s: it answered nothing", k.argv[0])
	}
	return signature, nil
}
