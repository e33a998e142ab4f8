# upgrade.pl: to a newer PostgreSQL by pg_dump and by pg_upgrade, which then goes on as the old one would have.
#
# Its pg_config is named in KAVACH_NEW_PG_CONFIG; test/run installs kavach there, too.
use strict;
use warnings;
use File::Basename;
use FindBin;
use lib $FindBin::RealBin;
use Copy;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'KAVACH_NEW_PG_CONFIG names no newer PostgreSQL' unless $ENV{KAVACH_NEW_PG_CONFIG};
chomp(my $new_bin = `$ENV{KAVACH_NEW_PG_CONFIG} --bindir`);

sub cluster
{
	my ($name, %where) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name, %where);
	# pg_upgrade wants checksums as they were, and their default changed with 18.
	$node->init($node->pg_version >= 18 ? (extra => ['--no-data-checksums']) : ());
	$node->append_conf('postgresql.conf', $Copy::conf);
	return $node;
}
my $old = cluster('old');
my $new = cluster('new', install_path => dirname($new_bin));
my $upgraded = cluster('upgraded', install_path => dirname($new_bin));
note 'from ' . $old->pg_version . ' to ' . $new->pg_version;
$_->start foreach $old, $new;
Copy::fill($old);
$new->safe_psql('postgres', 'CREATE ROLE myapp LOGIN');

# A custom archive, made with the newer pg_dump, as its manual advises; and a plain one, made with the old.
my $folder = PostgreSQL::Test::Utils::tempdir;
$new->command_ok([ 'pg_dump', '-Fc', '-f', "$folder/old.dump", '-d', $old->connstr('old') ], 'the newer pg_dump');
$new->safe_psql('postgres', 'CREATE DATABASE restored');
$new->safe_psql('postgres', 'ALTER DATABASE restored SET search_path = app');
$new->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'restored', "$folder/old.dump" ], 'pg_restore --exit-on-error');
$old->command_ok([ 'pg_dump', '--create', '-f', "$folder/old.sql", 'old' ], 'the old pg_dump');
$new->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', 'postgres', '-f', "$folder/old.sql" ], 'psql');

$old->stop;
chdir $folder or die;
$upgraded->command_ok(
	[
		'pg_upgrade', '--no-sync', '-d', $old->data_dir, '-D', $upgraded->data_dir,
		'-b', $old->config_data('--bindir'), '-B', $new_bin,
		'-s', $upgraded->host, '-p', $old->port, '-P', $upgraded->port
	],
	'pg_upgrade');
$_->start foreach $old, $upgraded;
is($upgraded->safe_psql('old', 'SELECT loads FROM kavach.counter_stats'), '0', 'nothing is counted yet after pg_upgrade');

Copy::compare($old, [ 'pg_restore', $new, 'restored' ], [ 'psql', $new, 'old' ], [ 'pg_upgrade', $upgraded, 'old' ]);
cmp_ok($upgraded->safe_psql('old', 'SELECT loads FROM kavach.counter_stats'), '>', 0, 'the counters were read from the ledger');
$_->stop foreach $old, $new, $upgraded;
done_testing();
