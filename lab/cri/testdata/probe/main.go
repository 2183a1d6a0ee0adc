// SPDX-License-Identifier: Apache-2.0

// Command probe is the program that the CRI tests run in containers; when CNI_COMMAND is set it is their CNI plugin
// instead.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if command := os.Getenv("CNI_COMMAND"); command != "" {
		plugin(command)
		return
	}
	arg := func(i int) string {
		if len(os.Args) > i {
			return os.Args[i]
		}
		return ""
	}
	switch arg(1) {
	case "exit":
		code, _ := strconv.Atoi(arg(2))
		fmt.Println("exiting")
		os.Exit(code)
	case "stop": // sleeps until SIGTERM, then says so and exits with code 7
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Println("waiting")
		<-term
		fmt.Println("got TERM")
		os.Exit(7)
	case "stubborn": // doesn't listen to SIGTERM
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("waiting")
		time.Sleep(time.Hour)
	case "serve": // echoes what a TCP client sends
		l, err := net.Listen("tcp", arg(2))
		if err != nil {
			fatal(err)
		}
		fmt.Println("serving")
		for {
			c, err := l.Accept()
			if err != nil {
				fatal(err)
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	case "count": // a line a millisecond
		for i := 0; ; i++ {
			fmt.Println("line", i)
			time.Sleep(time.Millisecond)
		}
	case "long": // one line of so many bytes
		n, _ := strconv.Atoi(arg(2))
		for range n {
			os.Stdout.WriteString("x")
		}
		fmt.Println()
	default:
		fmt.Printf("pid %d uid %d gid %d args %q\n", os.Getpid(), os.Getuid(), os.Getgid(), os.Args[1:])
		fmt.Fprintln(os.Stderr, "to stderr")
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		<-term
	}
}

// plugin gives every pod the next address and notes its calls in the directory that the configuration names.
func plugin(command string) {
	var conf struct {
		CNIVersion    string `json:"cniVersion"`
		Dir           string
		RuntimeConfig struct {
			PortMappings json.RawMessage `json:"portMappings"`
		} `json:"runtimeConfig"`
		Valid []struct {
			ContainerID string `json:"containerID"`
		} `json:"cni.dev/valid-attachments"`
	}
	if command == "VERSION" {
		fmt.Println(`{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}`)
		return
	}
	if err := json.NewDecoder(os.Stdin).Decode(&conf); err != nil {
		fatal(err)
	}
	fail := func(code int, msg string) {
		fmt.Printf(`{"cniVersion":"1.1.0","code":%d,"msg":%q}`, code, msg)
		os.Exit(1)
	}
	state := filepath.Join(conf.Dir, os.Getenv("CNI_CONTAINERID"))
	switch command {
	case "STATUS":
		if _, err := os.Stat(filepath.Join(conf.Dir, "unready")); err == nil {
			fail(50, "not yet")
		}
	case "ADD":
		if _, err := os.Stat(filepath.Join(conf.Dir, "broken")); err == nil {
			fail(999, "no address left")
		}
		if _, err := os.Stat(filepath.Join(conf.Dir, "slow")); err == nil {
			if err := os.WriteFile(state, []byte("half"), 0o600); err != nil {
				fatal(err)
			}
			time.Sleep(time.Hour)
		}
		if _, err := os.Stat(os.Getenv("CNI_NETNS")); err != nil {
			fail(7, err.Error())
		}
		body, err := json.Marshal(map[string]any{"args": os.Getenv("CNI_ARGS"), "ports": conf.RuntimeConfig.PortMappings})
		if err == nil {
			err = os.WriteFile(state, body, 0o600)
		}
		if err != nil {
			fatal(err)
		}
		fmt.Printf(`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":%q}],
			"ips":[{"interface":0,"address":"10.9.8.7/24"},{"interface":0,"address":"fd09::7/64"}]}`, os.Getenv("CNI_NETNS"))
	case "DEL":
		if err := os.Remove(state); err != nil && !os.IsNotExist(err) {
			fatal(err)
		}
	case "GC":
		keep := map[string]bool{}
		for _, v := range conf.Valid {
			keep[v.ContainerID] = true
		}
		entries, _ := os.ReadDir(conf.Dir)
		for _, e := range entries {
			if len(e.Name()) == 64 && !keep[e.Name()] {
				os.Remove(filepath.Join(conf.Dir, e.Name()))
			}
		}
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
