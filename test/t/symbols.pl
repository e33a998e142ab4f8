# symbols.pl: another library, preloaded before kavach, that has functions of the same names as kavach's own changes
# nothing.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('symbols');
my $folder = PostgreSQL::Test::Utils::tempdir;
append_to_file("$folder/other.c", q{
#include "postgres.h"
#include "fmgr.h"
PG_MODULE_MAGIC;
bool same_text(const char *a, const char *b) { return true; }
void lock_acquire(int class, const char *id) { }
int64 period_end(int period, int64 ts) { return 0; }
PG_FUNCTION_INFO_V1(other);
Datum other(PG_FUNCTION_ARGS) { PG_RETURN_BOOL(same_text("a", "b")); }
});
my $pg_config = $ENV{PG_CONFIG} // 'pg_config';
chomp(my ($cc, $include) = map { scalar qx{'$pg_config' --$_} } qw(cc includedir-server));
is(system(split(' ', $cc), '-w', '-shared', '-fPIC', "-I$include", '-o', "$folder/other.so", "$folder/other.c"), 0, 'another library');

$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = '$folder/other.so, kavach'\nkavach.clock = '2026-03-10 12:00:00+00'");
$node->start;
$node->safe_psql('postgres', qq{
	CREATE EXTENSION kavach;
	CREATE FUNCTION other() RETURNS boolean LANGUAGE c AS '$folder/other.so', 'other';
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
	SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_per_day": 1000}')});
is($node->safe_psql('postgres', 'SELECT other()'), 't', 'is there, with functions of its own');

my ($one, $two) = map { Session->new($node) } 1, 2;
my $call = q{SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 5, request_id => 'r-1')};
is($one->query("BEGIN; $call"), 'allowed', 'a call');
$two->send($call);
$node->poll_query_until('postgres', 'SELECT wait_event_type IS NOT DISTINCT FROM \'Lock\' OR state = \'idle\' FROM pg_stat_activity WHERE pid = ' . $two->pid) or die;
is($node->safe_psql('postgres', 'SELECT locktype FROM pg_locks WHERE NOT granted AND pid = ' . $two->pid), 'userlock', 'the same request waits for it');
$one->query('COMMIT');
is($two->answer, 'allowed', 'and is that one again');
is($one->query('SELECT count(*) FROM kavach.ledger'), '1', 'so that there is one row');
like($one->query($call =~ s/'x'/'y'/r), qr/^ERROR/, 'another call cannot have its request_id');
is($one->query(q{SELECT retry_at FROM kavach_authorize('agt_a', 'run', 'x', 996)}), '2026-03-11 00:00:00+00', 'and days end when they do');
$_->quit for $one, $two;
$node->stop;
done_testing();
