# exact.pl: while calls come and go and batches are closed, every report is at every moment the sum over the rows of
# its own snapshot, on the primary and on a standby; and a sum that somebody has changed by one token is seen.
#
# KAVACH_EXACT_SECONDS=60 KAVACH_EXACT_WRITERS=32 does it for as long, with so many, as fast as they can; else it is a few
# comparisons, with as few calls meanwhile that their rows are soon passed over.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $seconds = $ENV{KAVACH_EXACT_SECONDS} // 0;
my $writers = $ENV{KAVACH_EXACT_WRITERS} // 4;

my $primary = PostgreSQL::Test::Cluster->new('primary');
$primary->init(allows_streaming => 1);
$primary->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\ntimezone = 'UTC'\nmax_connections = " . ($writers + 20));
$primary->start;
$primary->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_months('2026-01-01', '2026-04-01');
	SELECT kavach_create_agent('agt_' || n, 'user_' || n % 3, 'tenant_' || n % 2, permissions => '[{"resource": "*", "actions": ["*"]}]') FROM generate_series(1, 7) n});
$primary->safe_psql('postgres', slurp_file("$ENV{KAVACH_SRC}/test/pgtap/differences.psql"));
$primary->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'base', has_streaming => 1);
$standby->append_conf('postgresql.conf', "hot_standby_feedback = on\nmax_standby_streaming_delay = -1");
$standby->start;

# ---- what goes on ----

sub run_on
{
	my ($name, $clients, $script, @options) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . "/$name";
	append_to_file("$file.sql", $script);
	return IPC::Run::start([ 'pgbench', '-n', @options, '-c', $clients, '-T', 86400, '-f', "$file.sql", '-d', $primary->connstr('postgres') ], '>', "$file.out", '2>', "$file.err");
}

# Calls of eleven weeks, in any order: settled, left open, of an unknown agent, rolled back, of two batches in one transaction.
my $script = q{
\set agent random(1, 8)
\set fate random(1, 10)
BEGIN;
SELECT set_config('kavach.clock', (timestamptz '2026-01-20Z' + random() * interval '75 days')::text, true);
SELECT audit_id, allowed FROM kavach_authorize('agt_' || :agent, 'run', 'x', tokens_cost => 1 + :fate)
\gset
\if :allowed
\if :fate > 3
SELECT usage_id FROM kavach_record_usage('agt_' || :agent, 2 * :fate, audit_id => ':audit_id');
\endif
\endif
\if :fate = 1
ROLLBACK;
\else
COMMIT;
\endif
};
my @loads = (run_on('calls', $writers, $script, $seconds ? () : ('-R', 50)), run_on('closing', 1, "SELECT kavach.close_batches();\n\\sleep 100 ms\n"));
my $idle = Session->new($primary);
$idle->query(q{SET kavach.clock = '2026-02-10 12:00:00+00'});
$idle->query('BEGIN');
$idle->query(q{SELECT allowed FROM kavach_authorize('agt_1', 'run', 'x', tokens_cost => 1000)});

# ---- what is read meanwhile ----

my @nodes = ($primary, $standby);
my @readers = map { Session->new($_) } @nodes;
my ($compared, $wrong) = (0, '');
my $end = time + $seconds;

sub differences
{
	my ($reader) = @_;
	$reader->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
	my $found = $reader->query(q{
		SELECT d FROM (SELECT timestamptz '2026-01-15Z' + random() * interval '40 days', timestamptz '2026-02-25Z' + random() * interval '45 days' OFFSET 0) AS r (since, until),
		              LATERAL differences(r.since, r.until) d
		 UNION ALL SELECT differences_of_all()});
	$reader->query('COMMIT');
	return $found;
}
for my $reader (@readers)
{
	$reader->until_row('SELECT FROM kavach.tail WHERE cardinality(open) > 0 AND (SELECT count(*) FROM kavach.batch) > 3');
}
while ($wrong eq '' && ($compared < 4 || time < $end))
{
	$wrong = differences($readers[ $compared % 2 ]);
	$compared++;
}
is($wrong, '', "reports are the sums over the rows, in each of $compared snapshots");
is($idle->query(q{SELECT cardinality(open) > 0 FROM kavach.tail}), 't', 'with a batch open throughout');
is($primary->safe_psql('postgres', q{SELECT count(*) > 3, count(DISTINCT month) = 4 FROM kavach.batch}), 't|t', 'and others closed, of several months');

$_->kill_kill for @loads;
$idle->query('COMMIT');
$primary->safe_psql('postgres', 'SELECT kavach.close_batches()');
$primary->wait_for_catchup($standby);
is(differences($_), '', 'when all is over, too') for @readers;

# ---- and could they differ? ----

for my $table (qw(usage_daily usage_monthly usage_total))
{
	$readers[0]->query('BEGIN');
	$readers[0]->query("UPDATE kavach.$table SET tokens_cost = tokens_cost + 1 WHERE ctid = (SELECT min(ctid) FROM kavach.$table)");
	isnt($readers[0]->query('SELECT differences(NULL, NULL)'), '', "a token too many in $table is seen");
	$readers[0]->query('ROLLBACK');
}
$primary->safe_psql('postgres', 'UPDATE kavach.usage_total SET denied = denied - 1 WHERE ctid = (SELECT min(ctid) FROM kavach.usage_total)');
$primary->wait_for_catchup($standby);
like(differences($readers[1]), qr/usage_by_day/, 'on the standby, too');

done_testing;
