package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	verdictMagic   = 0x49
	verdictVersion = 1
	verdictOK      = 1
)

func source(ctx context.Context, socket string) (*workloadapi.X509Source, error) {
	return workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+socket)))
}

// identity is what a workload shows and whom it believes: from a Workload API; or, without a socket, as a workload of another
// trust domain has it, an SVID from PEM files and the peer's bundle from the endpoint that its trust domain federates with.
func identity(ctx context.Context, given map[string]string, peer spiffeid.ID) (x509svid.Source, x509bundle.Source, error) {
	if given["socket"] != "" {
		both, err := source(ctx, given["socket"])
		return both, both, err
	}
	svid, err := x509svid.Load(given["svid"], given["key"])
	if err != nil {
		return nil, nil, err
	}
	profile, err := profile(given)
	if err != nil {
		return nil, nil, err
	}
	bundle, err := federation.FetchBundle(ctx, peer.TrustDomain(), given["url"], profile)
	return svid, bundle, err
}

// dial reaches a service of the mesh over its own protocol for raw TCP: mTLS, then the server's verdict, then bytes. With an
// empty ALPN there is no verdict. It sends a line and prints the line that comes back.
func dial(ctx context.Context, arguments []string) (any, error) {
	given, err := flags(arguments, map[string]string{
		"socket": "", "address": "", "name": "", "alpn": "", "expect": "", "send": "",
		"svid": "", "key": "", "url": "", "web-roots": "", "endpoint-id": "", "bootstrap": "",
	})
	if err != nil {
		return nil, err
	}
	expected, err := spiffeid.FromString(given["expect"])
	if err != nil {
		return nil, err
	}
	svid, bundles, err := identity(ctx, given, expected)
	if err != nil {
		return nil, err
	}
	config := tlsconfig.MTLSClientConfig(svid, bundles, tlsconfig.AuthorizeID(expected))
	config.ServerName = given["name"]
	if given["alpn"] != "" {
		config.NextProtos = []string{given["alpn"]}
	}
	dialer := tls.Dialer{Config: config}
	stream, err := dialer.DialContext(ctx, "tcp", given["address"])
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	limit, _ := ctx.Deadline()
	if err := stream.SetDeadline(limit); err != nil {
		return nil, err
	}
	reader := bufio.NewReader(stream)
	if given["alpn"] != "" {
		if err := readVerdict(reader); err != nil {
			return nil, err
		}
	}
	if _, err := fmt.Fprintf(stream, "%s\r\n", given["send"]); err != nil {
		return nil, err
	}
	line, err := reader.ReadString('\n')
	if err != nil {
		return nil, err
	}
	peer, err := spiffeid.FromURI(stream.(*tls.Conn).ConnectionState().PeerCertificates[0].URIs[0])
	if err != nil {
		return nil, err
	}
	return map[string]string{"peer": peer.String(), "answer": line}, nil
}

func readVerdict(reader io.Reader) error {
	header := make([]byte, 4)
	if _, err := io.ReadFull(reader, header); err != nil {
		return fmt.Errorf("verdict: %w", err)
	}
	if header[0] != verdictMagic || header[1] != verdictVersion {
		return fmt.Errorf("no verdict: % x", header)
	}
	message := make([]byte, binary.BigEndian.Uint16(header[2:]))
	if _, err := io.ReadFull(reader, message); err != nil {
		return fmt.Errorf("verdict: %w", err)
	}
	number, kind, length := protowire.ConsumeTag(message)
	if length < 0 || number != 1 || kind != protowire.VarintType {
		return fmt.Errorf("the verdict has no code: % x", message)
	}
	if code, _ := protowire.ConsumeVarint(message[length:]); code != verdictOK {
		return fmt.Errorf("the verdict is %d", code)
	}
	return nil
}

// serve echoes lines to one client that must have an identity, and prints where it listens.
func serve(ctx context.Context, arguments []string) (any, error) {
	given, err := flags(arguments, map[string]string{"socket": "", "listen": "127.0.0.1:0", "allow": ""})
	if err != nil {
		return nil, err
	}
	allowed, err := spiffeid.FromString(given["allow"])
	if err != nil {
		return nil, err
	}
	svids, err := source(ctx, given["socket"])
	if err != nil {
		return nil, err
	}
	defer svids.Close()
	config := tlsconfig.MTLSServerConfig(svids, svids, tlsconfig.AuthorizeID(allowed))
	listener, err := tls.Listen("tcp", given["listen"], config)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	if err := say(map[string]string{"address": listener.Addr().String()}); err != nil {
		return nil, err
	}
	stream, err := listener.Accept()
	if err != nil {
		return nil, err
	}
	return echo(stream)
}

func echo(stream net.Conn) (any, error) {
	defer stream.Close()
	if err := stream.SetDeadline(time.Now().Add(deadline)); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(stream).ReadString('\n')
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(stream, line); err != nil {
		return nil, err
	}
	return map[string]string{"echoed": line}, nil
}
