package listen

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"
)

// revoked holds certificates that were called back before their time, by
// issuer and serial number: two authorities may give the same number.
type revoked map[certificateID]bool

type certificateID struct{ issuer, serial string }

func idOf(cert *x509.Certificate) certificateID {
	return certificateID{string(cert.RawIssuer), string(cert.SerialNumber.Bytes())}
}

// check refuses callers of whom no chain is free of revoked certificates.
func (r revoked) check(chains [][]*x509.Certificate) error {
	if len(r) == 0 {
		return nil
	}
	var bad *x509.Certificate
	for _, chain := range chains {
		bad = nil
		for _, cert := range chain {
			if r[idOf(cert)] {
				bad = cert
			}
		}
		if bad == nil {
			return nil
		}
	}
	if bad == nil {
		return nil
	}
	return fmt.Errorf("tls: certificate with serial number %X is revoked", bad.SerialNumber)
}

// readRevoked reads the lists in a file, PEM or DER. Each must be signed by
// one of the authorities: whoever can write the file shall not be able to let
// a revoked certificate in. One that is out of date still counts: to refuse
// everybody because a list was not renewed would stop the cluster.
func readRevoked(name string, f file, authorities []*x509.Certificate, report func(error)) (revoked, error) {
	if f.err != nil {
		return nil, fmt.Errorf("listen: %w", f.err)
	}
	var lists [][]byte
	for block, rest := pem.Decode(f.data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "X509 CRL" {
			lists = append(lists, block.Bytes)
		}
	}
	if len(lists) == 0 {
		lists = append(lists, f.data)
	}
	all := make(revoked)
	for _, der := range lists {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("listen: %s: %w", name, err)
		}
		if err := signedByOne(list, authorities); err != nil {
			return nil, fmt.Errorf("listen: %s: %w", name, err)
		}
		for _, entry := range list.RevokedCertificateEntries {
			all[certificateID{string(list.RawIssuer), string(entry.SerialNumber.Bytes())}] = true
		}
		if !list.NextUpdate.IsZero() && time.Now().After(list.NextUpdate) {
			report(fmt.Errorf("listen: %s was due for renewal at %s; certificates revoked since are still let in",
				name, list.NextUpdate.Format(time.RFC3339)))
		}
	}
	return all, nil
}

func signedByOne(list *x509.RevocationList, authorities []*x509.Certificate) error {
	err := fmt.Errorf("issued by %v, which is no trusted authority", list.Issuer)
	for _, a := range authorities {
		if !bytes.Equal(a.RawSubject, list.RawIssuer) {
			continue
		}
		if err = list.CheckSignatureFrom(a); err == nil {
			return nil
		}
	}
	return err
}
