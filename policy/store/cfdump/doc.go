// Package cfdump reads what a Cloud Foundry policy server or silk-controller has
// stored out of a dump of its database: plain text, as mysqldump and pg_dump write
// it, with COPY or with INSERT.
//
// A scanner finds the statements that make a table or fill one and reads their
// rows; everything else in the dump it passes over. Read then puts the tables
// together. Nothing is executed, and no database is needed. The reference for the
// tables is policy-api, 7, and silk-controller, 1.6.
package cfdump
