# failover.pl: a synchronous standby takes over under load, and nothing that was acknowledged is lost.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Load;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
$primary->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nautovacuum = off");
$primary->start;
Load::prepare($primary);
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->start;
$primary->append_conf('postgresql.conf', "synchronous_standby_names = 'standby'");
$primary->reload;
$primary->poll_query_until('postgres', q{SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'}) or die;

# The standby is cut off first: whoever still had an answer then would have had it from the primary alone.
my $load = Load->new($primary, 5000, 'local');
$load->is_under_way;
$standby->append_conf('postgresql.conf', "primary_conninfo = ''");
$standby->reload;
$primary->poll_query_until('postgres', 'SELECT count(*) = 0 FROM pg_stat_replication') or die;
my $rows = $primary->safe_psql('postgres', 'SELECT count(*) FROM kavach.audit_log');
$primary->poll_query_until('postgres', qq{
	SELECT (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_type = 'client backend') = 4
	    OR (SELECT count(*) FROM kavach.audit_log) > $rows + 100}) or die;
$primary->stop('immediate');
$standby->promote;
$load->judge($standby);

# It goes on to the end of the budget.
Load->new($standby, 500, 'off')->judge($standby);
Load::use_up($standby);
$standby->stop;
done_testing();
