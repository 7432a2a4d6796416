package listen

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// autoFile holds the certificate and its key, so that both change at once.
const autoFile = "self-signed.pem"

// A certificate is renewed when less than this part of its life is left.
const renewPart = 10

// renewAuto makes the self-signed certificate if there is none that will do.
func (c *Credentials) renewAuto() error {
	if !c.auto() {
		return nil
	}
	name := filepath.Join(c.rules.AutoDir, autoFile)
	now := time.Now()
	if data, err := os.ReadFile(name); err == nil {
		pair, err := tls.X509KeyPair(data, data)
		if err == nil && pair.Leaf.NotAfter.Sub(now) > c.rules.AutoValidity/renewPart && covers(pair.Leaf, c.rules.AutoHosts) {
			return nil
		}
	}
	data, err := selfSigned(c.rules.AutoHosts, now, c.rules.AutoValidity)
	if err != nil {
		return fmt.Errorf("listen: make a self-signed certificate: %w", err)
	}
	if err := writeWhole(name, data); err != nil {
		return fmt.Errorf("listen: keep the self-signed certificate: %w", err)
	}
	return nil
}

func covers(cert *x509.Certificate, hosts []string) bool {
	for _, host := range hosts {
		if cert.VerifyHostname(host) != nil {
			return false
		}
	}
	return true
}

func selfSigned(hosts []string, now time.Time, validity time.Duration) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"kvorum"}},
		NotBefore:             now.Add(-time.Minute), // clocks differ a little
		NotAfter:              now.Add(validity),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert})
	pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return b.Bytes(), nil
}

// writeWhole replaces a file at once; readers see the old or the new. Only
// the owner may read it, as it holds a key.
func writeWhole(name string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), autoFile+".*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
