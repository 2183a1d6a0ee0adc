// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// runEtcd runs a single-member etcd. Its data lies on the lab's tmpfs and dies with it, so nothing is synced, the
// write-ahead log is cut into small segments (etcd's default preallocates 64 MiB, twice, which a tmpfs pays for in
// memory), and the election timeout is that of a member with nobody to wait for.
func runEtcd() int {
	flags := flag.NewFlagSet("etcd", flag.ExitOnError)
	dir := flags.String("data-dir", "", "where the data lies")
	listen := flags.String("listen", "http://127.0.0.1:2379", "the URL that clients use")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return 2
	}
	client, err := url.Parse(*listen)
	if err != nil {
		fmt.Fprintf(os.Stderr, "etcd: --listen %q: %v\n", *listen, err)
		return 2
	}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}

	wal.SegmentSizeBytes = 4 << 20
	cfg := embed.NewConfig()
	cfg.Name = "lab"
	cfg.Dir = *dir
	cfg.LogLevel = "warn"
	cfg.LogOutputs = []string{"stderr"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.UnsafeNoFsync = true
	cfg.TickMs, cfg.ElectionMs = 20, 200
	cfg.SnapshotCount = 10000
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = "revision", "1000"
	cfg.QuotaBackendBytes = 1 << 30

	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcd:", err)
		return 1
	}
	defer etcd.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	select {
	case <-stop:
	case err := <-etcd.Err():
		fmt.Fprintln(os.Stderr, "etcd:", err)
		return 1
	}
	return 0
}
