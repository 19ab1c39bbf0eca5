package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"tulle/policy/api"
	"tulle/policy/ca"
)

// joinTimeout bounds all of a join.
const joinTimeout = 30 * time.Second

// Join redeems a join token at the server (https://host:port of the internal API)
// and writes the credential into dir, where none may be yet. The key is made here
// and stays here. It returns the cell's name.
func Join(ctx context.Context, server, token, dir string) (cell string, err error) {
	t, err := ca.ParseJoinToken(token)
	if err != nil {
		return "", err
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("policy server %q: expected https://host:port", server)
	}
	// Before the token is used up.
	if err := ca.CheckFree(dir); err != nil {
		return "", err
	}
	key, request, err := ca.NewRequest()
	if err != nil {
		return "", err
	}
	conf, root := ca.JoinTLS(t, u.Hostname())
	transport := &http.Transport{TLSClientConfig: conf}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	body, err := json.Marshal(api.Join{Secret: t.SecretText(), Request: string(request)})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+u.Host+strings.TrimSuffix(u.Path, "/")+api.PathJoin, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", fmt.Errorf("join: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("join: %w", statusError(resp))
	}
	var joined api.Joined
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&joined); err != nil {
		return "", fmt.Errorf("join: read answer: %w", err)
	}
	credential := &ca.Credential{CertPEM: []byte(joined.Certificate), KeyPEM: key}
	if _, err := credential.TLS(); err != nil {
		return "", errors.Join(errors.New("join: the server's certificate is not of the key that was made here"), err)
	}
	return joined.Cell, ca.WriteJoined(dir, credential, root())
}
