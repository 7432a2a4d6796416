package listen

import (
	"crypto/tls"
	"fmt"
	"strings"
)

// formerNames are what Go called these suites before version 1.14; old
// manifests still do.
var formerNames = map[string]uint16{
	"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
}

// cipherSuites looks names up. Broken suites are refused like unknown ones.
func cipherSuites(names []string) ([]uint16, error) {
	var ids []uint16
	for _, name := range names {
		id, ok := cipherSuite(name)
		if !ok {
			var good []string
			for _, suite := range tls.CipherSuites() {
				good = append(good, suite.Name)
			}
			return nil, fmt.Errorf("listen: cipher suite %s is unknown or no longer safe; choose from %s", name, strings.Join(good, ", "))
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func cipherSuite(name string) (uint16, bool) {
	for _, suite := range tls.CipherSuites() {
		if suite.Name == name {
			return suite.ID, true
		}
	}
	id, ok := formerNames[name]
	return id, ok
}
