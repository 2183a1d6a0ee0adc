// SPDX-License-Identifier: Apache-2.0

// Package nft speaks to the kernel's nf_tables over netlink: it packs tables, chains, rules and any number of set
// elements into transactions, sends each in one piece, and believes only what the kernel confirms.
//
// A Batch is one transaction. Its parts reach the kernel in an order that lets one Batch replace things: objects are
// created first, then elements deleted, then elements added, then objects deleted. A Conn commits Batches and reads
// back what the kernel holds; a Monitor tells when somebody else has changed a table.
//
// Rules are few and are written with the expressions of google/nftables. Elements are many and are encoded here: no
// allocation an element, and no acknowledgement a message, of which a big transaction would lose some. A Batch must
// fit the socket's send buffer (Conn.Limit); who needs more cuts at points where both halves are right by themselves.
//
// Who has objects whose order matters beyond that encodes them as Messages, with the same Attrs.
//
// What a table means is for the packages that own one: servicetable, policytable and dnstable. This package imports neither
// them nor any compile package, only the netlink encodings.
package nft
