package main

import (
	"context"
	"crypto/ecdsa"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type fetched struct {
	ID      string         `json:"id"`
	KeyFits bool           `json:"keyFits"`
	Roots   map[string]int `json:"roots"`
	JWT     string         `json:"jwt"`
}

// fetch asks for the SVID, and for all bundles.
func fetch(ctx context.Context, arguments []string) (any, error) {
	given, err := flags(arguments, map[string]string{"socket": ""})
	if err != nil {
		return nil, err
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+given["socket"]))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	update, err := client.FetchX509Context(ctx)
	if err != nil {
		return nil, err
	}
	bundles, err := client.FetchX509Bundles(ctx)
	if err != nil {
		return nil, err
	}
	svid := update.DefaultSVID()
	certified, isECDSA := svid.Certificates[0].PublicKey.(*ecdsa.PublicKey)
	answer := fetched{
		ID:      svid.ID.String(),
		KeyFits: isECDSA && certified.Equal(svid.PrivateKey.Public()),
		Roots:   roots(bundles),
		JWT:     "answered",
	}
	if _, err := client.FetchJWTBundles(ctx); err != nil {
		answer.JWT = err.Error()
	}
	return answer, nil
}

func roots(bundles *x509bundle.Set) map[string]int {
	count := map[string]int{}
	for _, bundle := range bundles.Bundles() {
		count[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	return count
}
