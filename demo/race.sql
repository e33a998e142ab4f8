-- What each of the racing sessions does over and over (a pgbench script).
\set agent random(1, 8)
\set cost random(5, 40)
SELECT * FROM kavach_authorize('agt_race_' || :agent, 'execute', 'mcp:openai:chat',
                               tokens_cost => :cost, min_tokens => 1);
