# node.pl: kavach through node-postgres, as JavaScript applications use it.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Client;
use Judge;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Where Debian's packages and npm's global ones are; node looks there only if it is told to.
local $ENV{NODE_PATH} = join ':', $ENV{NODE_PATH} // (), qw(/usr/share/nodejs /usr/lib/nodejs /usr/lib/node_modules /usr/local/lib/node_modules);
my $nodejs = Client::found(q{require('pg')}, [ 'node', '-e' ], [ '/usr/bin/node', '-e' ]);
plan skip_all => 'there is no node-postgres (node-pg)' unless $nodejs;

my $node = PostgreSQL::Test::Cluster->new('node');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
Client::make_database($node, 'client');
Client::run($node, 'client', [ $nodejs->[0] ], 'node.js');
is(Judge::faults($node, 'client'), '', 'nothing is left');

Client::make_database($node, 'mydb');
Client::run($node, 'mydb', [ $nodejs->[0] ], 'readme.js', @Client::documents);
is(Judge::faults($node, 'mydb'), '', 'nothing is left');
$node->stop;
done_testing();
