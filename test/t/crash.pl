# crash.pl: what was acknowledged is there after a crash, what was open is not, and the budget knows the difference.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use Load;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

# What has only been handed to the WAL writer is lost.
my $node = PostgreSQL::Test::Cluster->new('crash');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\nkavach.clock = '2026-03-10 12:00:00+00'\nwal_writer_delay = 10s\nautovacuum = off");
$node->start;
Load::prepare($node);

# ---- one call is open, another was settled ----

my $settle = "SELECT usage_id, tokens_charged FROM kavach_record_usage('agt_1', 1, request_id => 'settled')";
$node->safe_psql('postgres', q{SELECT kavach_authorize('agt_1', 'run', 'x', 20, request_id => 'settled')});
my $settled = $node->safe_psql('postgres', $settle);
my $open = Session->new($node);
is($open->query(q{BEGIN; SELECT code FROM kavach_authorize('agt_1', 'run', 'x', 39)}), 'allowed', 'a call is open');
$node->stop('immediate');
$open->quit;
$node->start;
is($node->safe_psql('postgres', 'SELECT count(*), sum(tokens_cost) FROM kavach.audit_log'), '2|1', 'it has left nothing');
is($node->safe_psql('postgres', $settle), $settled, 'a settlement repeated after the crash is the first one');

# ---- under load, and then on to the end of the budget ----

for my $time (1 .. 2)
{
	my $load = Load->new($node, 5000, 'off');
	$load->is_under_way;
	$node->stop('immediate');
	$node->start;
	$load->judge($node);
}
Load->new($node, 500, 'off')->judge($node);
Load::use_up($node);
$node->stop;
done_testing();
