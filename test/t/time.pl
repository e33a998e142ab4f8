# time.pl: a call belongs to the windows of its own moment, however late it commits and whichever way the clock steps.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('time');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'\ntimezone = 'Asia/Kathmandu'");
$node->start;
my $policies = 0;

# A new agent with one limit, and what sessions at different times are told.
sub agent
{
	my ($limits) = @_;
	my $id = 'agt_' . ++$policies;
	$node->safe_psql('postgres', qq{
		SELECT kavach_create_agent('$id', 'user_$policies', permissions => '[{"resource": "*", "actions": ["*"]}]'),
		       kavach_create_policy(user_id => 'user_$policies', limits => '$limits')});
	return $id;
}
$node->safe_psql('postgres', 'CREATE EXTENSION kavach');
my $one = Session->new($node);
my $two = Session->new($node);

sub call
{
	my ($session, $agent, $time, $cost) = @_;
	return $session->query("SET kavach.clock = '$time+00'; SELECT code, tokens_remaining FROM kavach_authorize('$agent', 'run', 'x', tokens_cost => $cost)");
}

# ---- the turn of each window ----

my %turns = (
	hour => [ [ '2027-06-15 10:59:59.999999', '2027-06-15 11:00:00' ] ],
	day => [ [ '2027-06-15 23:59:59.999999', '2027-06-16 00:00:00' ], [ '2028-02-28 23:59:59.999999', '2028-02-29 00:00:00' ] ],
	month => [
		[ '2027-02-28 23:59:59.999999', '2027-03-01 00:00:00' ],
		[ '2028-02-29 23:59:59.999999', '2028-03-01 00:00:00' ],
		[ '2100-02-28 23:59:59.999999', '2100-03-01 00:00:00' ],
		[ '2027-12-31 23:59:59.999999', '2028-01-01 00:00:00' ] ]);
for my $period (qw(hour day month))
{
	for my $turn (@{ $turns{$period} })
	{
		my ($before, $after) = @$turn;
		my $agent = agent(qq({"max_tokens_cost_per_$period": 10}));
		is(call($one, $agent, $before, 10), 'allowed|0', "$period: all of it at $before");
		is(call($two, $agent, $before, 1), 'budget_exceeded|0', 'nothing is left then');
		is(call($two, $agent, $after, 4), 'allowed|6', "at $after there is");
		is(call($one, $agent, $before, 1), 'budget_exceeded|0', 'when the clock steps back there is not');
		is(call($one, $agent, $after, 7), 'budget_exceeded|6', 'and forth again, what was left');
		is(call($one, $agent, $after, 6), 'allowed|0', 'can be had');
	}
}
is(call($one, agent('{"max_tokens_cost_per_day": 10}'), '2028-02-28 23:59:59', 10), 'allowed|0', 'the 28th of February of a leap year');
is(call($one, "agt_$policies", '2028-02-29 23:59:59', 10), 'allowed|0', 'is not the 29th');
my $leap = agent('{"max_tokens_cost_per_month": 10}');
is(call($one, $leap, '2028-02-01 00:00:00', 6), 'allowed|4', 'a leap February');
is(call($one, $leap, '2028-02-29 12:00:00', 5), 'budget_exceeded|4', 'is one month, with its 29th');

# ---- a transaction that is open across midnight ----

my $late = agent('{"max_tokens_cost_per_day": 10, "max_calls_per_hour": 5}');
$one->query(q{BEGIN; SET LOCAL kavach.clock = '2027-06-15 23:59:59+00'});
is(call($one, $late, '2027-06-15 23:59:59', 8), 'allowed|2', 'a call before midnight');
is(call($two, $late, '2027-06-16 00:00:01', 10), 'allowed|0', 'after midnight another has the whole day');
is(call($two, $late, '2027-06-15 23:59:59', 3), 'budget_pending|2', 'before it the open call counts');
is(call($one, $late, '2027-06-16 00:00:02', 1), 'budget_exceeded|0', 'the transaction itself has nothing left after it');
is(call($one, $late, '2027-06-15 23:59:59', 2), 'allowed|0', 'but the rest of the day before');
$one->query('COMMIT');
is(call($two, $late, '2027-06-15 23:59:59', 1), 'budget_exceeded|0', 'committed later, it is charged to its own day');
is(call($two, $late, '2027-06-16 00:00:03', 1), 'budget_exceeded|0', 'and not to the next');
is($two->query(qq{SELECT period, period_start AT TIME ZONE 'UTC', tokens_used, calls_used, tokens_pending, pins FROM kavach.counters WHERE subject = '$late' AND period = 'day' ORDER BY 2}),
	"day|2027-06-15 00:00:00|10|2|0|0\nday|2027-06-16 00:00:00|10|1|0|0", 'as the counters have it');

# ---- what is given back counts in the day of its authorization ----

my $refund = agent('{"max_tokens_cost_per_day": 10}');
my $audit = $one->query(qq{SET kavach.clock = '2027-06-15 23:00:00+00'; SELECT audit_id FROM kavach_authorize('$refund', 'run', 'x', tokens_cost => 10)});
is($two->query(qq{SET kavach.clock = '2027-06-16 01:00:00+00'; SELECT tokens_charged, tokens_remaining FROM kavach_record_usage('$refund', 3, '$audit')}), '-7|10', 'a refund after midnight');
is(call($one, $refund, '2027-06-15 23:30:00', 1), 'allowed|6', 'is room in the day before');
is(call($one, $refund, '2027-06-16 02:00:00', 10), 'allowed|0', 'and none in its own');

# ---- the same from the ledger ----

my $sums = q{SELECT scope, subject, period, period_start, tokens_used, calls_used FROM kavach.counters WHERE scope IN ('agent', 'user', 'all') AND (tokens_used, calls_used) <> (0, 0) ORDER BY 1, 2, 3, 4};
my $ledger = q{SELECT s.scope, s.subject, w.period, w.start, sum(coalesce(tokens_cost, 0)), count(*) FILTER (WHERE kind = 'authorize')
  FROM (SELECT *, least(ts, (SELECT a.ts FROM kavach.audit_log a WHERE a.id = l.settles AND l.tokens_cost < 0)) AS at FROM kavach.audit_log l) AS r
 CROSS JOIN LATERAL (VALUES ('agent', agent_id), ('user', user_id), ('all', NULL)) AS s (scope, subject)
 CROSS JOIN LATERAL (VALUES ('hour', date_trunc('hour', at, 'UTC')), ('day', date_trunc('day', at, 'UTC')), ('month', date_trunc('month', at, 'UTC')), ('total', '-infinity')) AS w (period, start)
 WHERE result = 'allowed' GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4};
is($one->query("SELECT (SELECT count(*) > 10 FROM ($sums) AS c), (SELECT count(*) FROM (($sums) EXCEPT ALL ($ledger)) AS x)"), 't|0', 'every counter is what the ledger says');
$one->query('SELECT kavach_reload_counters()');
is(call($one, $late, '2027-06-15 23:59:59', 1), 'budget_exceeded|0', 'read again, the day before midnight is full');
is(call($one, $late, '2027-06-16 00:00:03', 1), 'budget_exceeded|0', 'and the day after');
is(call($one, $refund, '2027-06-16 02:00:00', 1), 'budget_exceeded|0', 'a refund is no room in its own day');
is(call($one, $refund, '2027-06-15 23:45:00', 6), 'allowed|0', 'but in that of its authorization');
is(call($one, $leap, '2028-02-15 00:00:00', 4), 'allowed|0', 'and a leap February has what was left');
is($one->query("SELECT (SELECT count(*) > 10 FROM ($sums) AS c), (SELECT count(*) FROM (($sums) EXCEPT ALL ($ledger)) AS x)"), 't|0', 'every counter is what the ledger says');
$_->quit for $one, $two;
$node->stop;
done_testing();
