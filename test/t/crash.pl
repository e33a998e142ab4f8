# crash.pl: what was acknowledged is there after a crash, what was open is not, and the budget knows the difference.
use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = PostgreSQL::Test::Cluster->new('crash');
$node->init;
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'");
$node->start;
$node->safe_psql('postgres', q{
	CREATE EXTENSION kavach;
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]'),
	       kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_total": 100}');
});

# 30 calls of 2 tokens, each in a transaction of its own, acknowledged one by one.
my $acknowledged = $node->safe_psql('postgres', "SET synchronous_commit = on;\n"
	. "SELECT audit_id FROM kavach_authorize('agt_a', 'run', 'x', 2);\n" x 30);
my @ids = split /\n/, $acknowledged;
is(scalar @ids, 30, 'thirty calls acknowledged');
$node->safe_psql('postgres', "SELECT kavach_record_usage('agt_a', 1, '$ids[29]')");

# One more is open when the server dies.
my $open = IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres') ], '<', \my $in, '>', \my $out, '2>', \my $err, IPC::Run::timeout(180));
$in = "BEGIN; SELECT code FROM kavach_authorize('agt_a', 'run', 'x', 39);\n";
$open->pump until $out =~ /allowed/;
$node->stop('immediate');
eval { $open->finish };
$node->start;

is($node->safe_psql('postgres', 'SELECT count(*), count(DISTINCT id), sum(tokens_cost) FROM kavach.audit_log'), '31|31|59', 'every acknowledged row is there, no other');
is($node->safe_psql('postgres', "SELECT count(*) FROM kavach.audit_log WHERE id IN ('" . join("','", @ids) . "')"), '30', 'by its id');
is($node->safe_psql('postgres', 'SELECT used, remaining FROM kavach.budget_status'), '59|41', 'the budget is what the ledger says');
is($node->safe_psql('postgres', "SELECT code, tokens_remaining FROM kavach_authorize('agt_a', 'run', 'x', 42)"), 'budget_exceeded|41', 'it still refuses what does not fit');
is($node->safe_psql('postgres', "SELECT code, tokens_remaining FROM kavach_authorize('agt_a', 'run', 'x', 41)"), 'allowed|0', 'and admits what does');
is($node->safe_psql('postgres', "SELECT tokens_charged FROM kavach_record_usage('agt_a', 1, '$ids[29]')"), '-1', 'a settlement repeated after the crash is the first one');
$node->stop;
done_testing();
