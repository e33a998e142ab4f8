# restore.pl: pg_dump and pg_restore into a new database, which then goes on as the old one would have; by one job, by
# several at once, from a plain script, and from what a role for backups has dumped.
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
$node->command_ok([ 'pg_dump', '-f', "$dump.sql", 'old' ], 'pg_dump as a script');
$node->safe_psql('postgres', 'CREATE ROLE backup LOGIN IN ROLE pg_read_all_data');
$node->command_ok([ 'pg_dump', '-U', 'backup', '-Fc', '-f', "$dump.backup", 'old' ], 'pg_dump with pg_read_all_data');
for my $database (qw(new jobs script partly backup))
{
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql('postgres', "ALTER DATABASE $database SET search_path = app");
}
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'new', $dump ], 'pg_restore --exit-on-error');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-j', '3', '-d', 'jobs', $dump ], 'pg_restore --exit-on-error --jobs');
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', 'script', '-f', "$dump.sql" ], 'psql');

$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'backup', "$dump.backup" ], 'pg_restore of what the role for backups has dumped');

# A call in the middle is refused, rather than counted from what is there by then.
$node->command_ok([ 'pg_restore', '--exit-on-error', '--section=pre-data', '--section=data', '-d', 'partly', $dump ], 'pg_restore of all but the indexes');
my ($status, $out, $err) = $node->psql('partly', "\\set VERBOSITY verbose\nSELECT kavach_authorize('agt_a', 'run', 'x:y', 1)");
like($err, qr/55000: the ledger is being restored/, 'a call has to wait');
$node->command_ok([ 'pg_restore', '--exit-on-error', '--section=post-data', '-d', 'partly', $dump ], 'pg_restore of the rest');

Copy::compare($node, [ 'pg_restore', $node, 'new' ], [ 'jobs', $node, 'jobs' ], [ 'script', $node, 'script' ], [ 'in parts', $node, 'partly' ],
	[ 'by a role for backups', $node, 'backup' ]);
$node->stop;
done_testing();
