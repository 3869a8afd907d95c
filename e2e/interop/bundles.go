package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// fetchBundle gets a trust domain's bundle: by profile https_web with the roots of a file, or, with an endpoint's ID, by
// https_spiffe with a bootstrap bundle.
func fetchBundle(ctx context.Context, arguments []string) (any, error) {
	given, err := flags(arguments, map[string]string{
		"trust-domain": "", "url": "", "web-roots": "", "endpoint-id": "", "bootstrap": "",
	})
	if err != nil {
		return nil, err
	}
	trustDomain, err := spiffeid.TrustDomainFromString(given["trust-domain"])
	if err != nil {
		return nil, err
	}
	profile, err := profile(given)
	if err != nil {
		return nil, err
	}
	bundle, err := federation.FetchBundle(ctx, trustDomain, given["url"], profile)
	if err != nil {
		return nil, err
	}
	hint, _ := bundle.RefreshHint()
	sequence, _ := bundle.SequenceNumber()
	return map[string]any{
		"roots":    len(bundle.X509Authorities()),
		"jwt":      len(bundle.JWTAuthorities()),
		"hint":     hint.Seconds(),
		"sequence": sequence,
	}, nil
}

func profile(given map[string]string) (federation.FetchOption, error) {
	if given["endpoint-id"] == "" {
		roots := x509.NewCertPool()
		text, err := os.ReadFile(given["web-roots"])
		if err != nil {
			return nil, err
		}
		if !roots.AppendCertsFromPEM(text) {
			return nil, errors.New("no certificate in " + given["web-roots"])
		}
		return federation.WithWebPKIRoots(roots), nil
	}
	id, err := spiffeid.FromString(given["endpoint-id"])
	if err != nil {
		return nil, err
	}
	bootstrap, err := spiffebundle.Load(id.TrustDomain(), given["bootstrap"])
	if err != nil {
		return nil, err
	}
	return federation.WithSPIFFEAuth(bootstrap, id), nil
}

// serveBundle offers a bundle from a file: with a web certificate, or with an SVID, both PEM files. It prints where, and
// serves until it is killed.
func serveBundle(_ context.Context, arguments []string) (any, error) {
	given, err := flags(arguments, map[string]string{
		"trust-domain": "", "bundle": "", "listen": "127.0.0.1:0", "certificate": "", "key": "", "profile": "https_web",
	})
	if err != nil {
		return nil, err
	}
	trustDomain, err := spiffeid.TrustDomainFromString(given["trust-domain"])
	if err != nil {
		return nil, err
	}
	bundle, err := spiffebundle.Load(trustDomain, given["bundle"])
	if err != nil {
		return nil, err
	}
	bundle.SetRefreshHint(time.Minute)
	handler, err := federation.NewHandler(trustDomain, bundle)
	if err != nil {
		return nil, err
	}
	config, err := serverConfig(given)
	if err != nil {
		return nil, err
	}
	listener, err := tls.Listen("tcp", given["listen"], config)
	if err != nil {
		return nil, err
	}
	if err := say(map[string]string{"address": listener.Addr().String()}); err != nil {
		return nil, err
	}
	server := http.Server{Handler: handler, ReadHeaderTimeout: deadline}
	return nil, server.Serve(listener)
}

func serverConfig(given map[string]string) (*tls.Config, error) {
	if given["profile"] == "https_spiffe" {
		svid, err := x509svid.Load(given["certificate"], given["key"])
		if err != nil {
			return nil, err
		}
		return tlsconfig.TLSServerConfig(svid), nil
	}
	pair, err := tls.LoadX509KeyPair(given["certificate"], given["key"])
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}
