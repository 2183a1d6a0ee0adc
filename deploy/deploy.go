// SPDX-License-Identifier: Apache-2.0

// Package deploy holds the one Helm chart that installs weft, so that programs can carry it along: the lab renders
// exactly what a person installs. It imports only the standard library.
package deploy

import "embed"

// Chart is the Helm chart, under "chart/".
//
//go:embed all:chart
var Chart embed.FS
