// Package docs answers one question: what does the API look like? It holds the
// description that the policy server serves and its tests hold the server to;
// the other pages of this directory are for people. It is a value, for anybody
// and any goroutine.
package docs

import _ "embed" // the description

// OpenAPI is docs/openapi.json, the OpenAPI 3.1 description of the policy
// server's external and internal API. Nobody writes to it.
//
//go:embed openapi.json
var OpenAPI []byte
