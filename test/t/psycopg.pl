# psycopg.pl: kavach through psycopg 3, and psycopg2, as Python applications use them.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Client;
use Judge;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The distribution's psycopg belongs to its own Python.
my @pythons = ([ 'python3', '-c' ], [ '/usr/bin/python3', '-c' ]);
my $python = Client::found('import psycopg; psycopg.Connection.pipeline', @pythons);
my $older = Client::found('import psycopg2', @pythons);
plan skip_all => 'there is no psycopg 3 (python3-psycopg)' unless $python;

my $node = PostgreSQL::Test::Cluster->new('psycopg');
# In the locale C without an encoding, psycopg answers bytes rather than text.
$node->init(extra => [ '--encoding=UTF8', '--locale=C' ]);
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
Client::make_database($node, 'client');
Client::run($node, 'client', [ $python->[0] ], 'python.py');
is(Judge::faults($node, 'client'), '', 'nothing is left');

Client::make_database($node, 'mydb');
Client::run($node, 'mydb', [ $python->[0] ], 'readme.py', @Client::documents);
is(Judge::faults($node, 'mydb'), '', 'nothing is left');

SKIP:
{
	skip 'there is no psycopg2 (python3-psycopg2)', 1 unless $older;
	Client::make_database($node, 'older');
	Client::run($node, 'older', [ $older->[0] ], 'dbapi.py');
	is(Judge::faults($node, 'older'), '', 'nothing is left');
}
$node->stop;
done_testing();
