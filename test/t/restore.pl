# restore.pl: pg_dump and pg_restore into a new database, which then goes on as the old one would have.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Copy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('restore');
$node->init;
$node->append_conf('postgresql.conf', $Copy::conf);
$node->start;
Copy::fill($node);

my $dump = $node->backup_dir . '/old.dump';
mkdir $node->backup_dir;
$node->command_ok([ 'pg_dump', '-Fc', '-f', $dump, 'old' ], 'pg_dump');
$node->safe_psql('postgres', 'CREATE DATABASE new');
$node->safe_psql('postgres', 'ALTER DATABASE new SET search_path = app');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'new', $dump ], 'pg_restore --exit-on-error');
Copy::compare($node, [ 'pg_restore', $node, 'new' ]);
$node->stop;
done_testing();
